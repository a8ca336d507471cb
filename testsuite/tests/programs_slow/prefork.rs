//! A prefork program in Python (package `python3`) with this machine's own files as data.

use super::{daemon, script};
use testsuite::programs::{exec, installed, said};

#[test]
fn children_of_a_prefork_program_share_and_stay_right() {
    if !installed(&["python3"]) {
        return;
    }
    let daemon = daemon();
    let seen = said(exec(&daemon).args([
        "python3",
        &script("merge_any.py"),
        "python3",
        &script("prefork.py"),
    ]));
    let numbers: Vec<i64> = seen
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [sharing, data] = numbers[..] else {
        panic!("{seen}");
    };
    // Each child's own copy is equal to the parent's data, though not every object begins at the same place of a page.
    assert!(
        sharing > data,
        "{sharing} pages shared of {data} pages of data"
    );
}
