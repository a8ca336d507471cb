//! More equal pages than one merged page may have sharers: chains of dups.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::KsmFile;

fn equal_pages(limit: Option<&str>, count: u64) -> Host {
    let limit = limit.map(|limit| (KsmFile::MaxPageSharing, limit));
    let mut host = Host::new(limit.as_slice());
    host.process_of(count, 7);
    host.start();
    host
}

#[test]
fn s09_ten_pages_and_two_sharers_at_most() {
    let mut host = equal_pages(Some("2"), 10);
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    5    5    0    0    0    1    5    20    0    19840
        scan                        3    5    5    0    0    0    1    5    30    0    19840
        scan                        4    5    5    0    0    0    1    5    40    0    19840
        ",
    );
}

#[test]
fn s11_six_hundred_pages() {
    let mut host = equal_pages(None, 600);
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0  600    0    0    0   600    0   -38400
        scan                        2    3  597    0    0    0    1    3  1200    0  2406912
        scan                        3    3  597    0    0    0    1    3  1800    0  2406912
        scan                        4    3  597    0    0    0    1    3  2400    0  2406912
        ",
    );
}

#[test]
fn s12_one_page_too_many() {
    let mut host = equal_pages(None, 257);
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0  257    0    0    0   257    0   -16448
        scan                        2    1  255    1    0    0    0    0   514    0  1028032
        scan                        3    1  255    1    0    0    0    0   771    0  1028032
        ",
    );
}

#[test]
fn s12b_just_as_many_as_may_share() {
    let mut host = equal_pages(None, 256);
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0  256    0    0    0   256    0   -16384
        scan                        2    1  255    0    0    0    0    0   512    0  1028096
        scan                        3    1  255    0    0    0    0    0   768    0  1028096
        ",
    );
}

#[test]
fn x04_three_pages_and_two_sharers_at_most() {
    let mut host = equal_pages(Some("2"), 3);
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0    3    0    0    0     3    0     -192
        scan                        2    1    1    1    0    0    0    0     6    0     3904
        scan                        3    1    1    1    0    0    0    0     9    0     3904
        ",
    );
}

fn two_sharers(prune: &str) -> Host {
    Host::new(&[
        (KsmFile::MaxPageSharing, "2"),
        (KsmFile::PruneMillisecs, prune),
    ])
}

#[test]
fn t11_a_chain_that_loses_all_dups_but_one() {
    let mut host = two_sharers("0");
    let a = host.process_of(10, 7);
    host.start();
    host.steps(2);
    host.unique(a, pages(0, 0..8), 3);
    host.record("8 overwritten");
    host.steps(4);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    5    5    0    0    0    1    5    20    0    19840
        scan                        3    5    5    0    0    0    1    5    30    0    19840
        8 overwritten               3    5    5    0    0    0    1    5    30    0    19840
        scan                        4    1    1    0    8    0    1    1    40    0     3456
        scan                        5    1    1    8    0    0    0    0    50    0     3456
        scan                        6    1    1    0    8    0    0    0    52    8     3456
        scan                        7    1    1    8    0    0    0    0    62    8     3456
        ",
    );
}

#[test]
fn t11b_dups_with_one_sharer_each_are_never_joined() {
    let mut host = two_sharers("0");
    let a = host.process_of(10, 7);
    host.start();
    host.steps(2);
    for page in [0, 2, 4, 6, 8] {
        host.unique(a, pages(0, page..page + 1), 3 + page);
    }
    host.record("5 overwritten");
    host.steps(3);
    for page in [0, 2, 4, 6, 8] {
        host.fill(a, pages(0, page..page + 1), 7);
    }
    host.record("5 restored");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    5    5    0    0    0    1    5    20    0    19840
        scan                        3    5    5    0    0    0    1    5    30    0    19840
        5 overwritten               3    5    5    0    0    0    1    5    30    0    19840
        scan                        4    5    0    0    5    0    1    5    40    0     -640
        scan                        5    5    0    5    0    0    1    5    50    0     -640
        scan                        6    5    0    0    5    0    1    5    55    5     -640
        5 restored                  6    5    0    0    5    0    1    5    55    5     -640
        scan                        7    5    0    0    5    0    1    5    65    5     -640
        scan                        8    5    0    0    5    0    1    5    70   10     -640
        scan                        9    5    0    0    5    0    1    5    75   15     -640
        ",
    );
}

#[test]
fn t11d_a_chain_with_one_dup_left_is_none() {
    let mut host = two_sharers("3600000");
    let a = host.process();
    host.fill(a, pages(0, 0..4), 7);
    host.unique(a, pages(0, 4..5), 1);
    host.advise(a, pages(0, 0..5));
    host.start();
    host.steps(2);
    host.unique(a, pages(0, 0..2), 3);
    host.record("dup#1 both overwritten");
    host.steps(4);
    host.fill(a, pages(0, 0..1), 7);
    host.record("page 0 := content again");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0    5    0    0    0     5    0     -320
        scan                        2    2    2    1    0    0    1    2    10    0     7872
        scan                        3    2    2    1    0    0    1    2    15    0     7872
        dup#1 both overwritten      3    2    2    1    0    0    1    2    15    0     7872
        scan                        4    1    1    1    2    0    0    0    20    0     3776
        scan                        5    1    1    2    1    0    0    0    24    1     3776
        scan                        6    1    1    1    2    0    0    0    27    3     3776
        scan                        7    1    1    2    1    0    0    0    31    4     3776
        page 0 := content again     7    1    1    2    1    0    0    0    31    4     3776
        scan                        8    1    1    0    3    0    0    0    33    7     3776
        scan                        9    1    1    1    2    0    0    0    36    9     3776
        scan                       10    1    1    1    2    0    0    0    40   10     3776
        ",
    );
}

/// Two full dups of four sharers; `broken` pages are written to, then an equal page appears. Returns the pages of the
/// first process that are on the dup that it joined.
fn joined_dup(prune: &str, broken: [std::ops::Range<u64>; 2]) -> (Host, Vec<u64>) {
    let mut host = Host::new(&[
        (KsmFile::MaxPageSharing, "4"),
        (KsmFile::PruneMillisecs, prune),
    ]);
    let a = host.process_of(8, 7);
    host.start();
    host.steps(1);
    let [first, second] = broken;
    host.unique(a, pages(0, first), 3);
    host.unique(a, pages(0, second), 4);
    host.steps(1);
    let b = host.process_of(1, 7);
    host.steps(2);
    let first = pages(0, 0..1).start;
    let joined = host.frame(b, first);
    assert!(joined.is_some(), "the new page was not merged");
    let on_it = (0..8).filter(|page| host.frame(a, first + page) == joined);
    let on_it = on_it.collect();
    (host, on_it)
}

#[test]
fn t18_a_pruned_chain_fills_its_fullest_dup() {
    let (host, joined) = joined_dup("0", [0..1, 4..6]);
    assert_eq!(joined, [1, 2, 3]);
    host.expect(
        "
        scan                        1    0    0    0    8    0    0    0     8    0     -512
        scan                        2    2    6    0    0    0    1    2    16    0    24064
        scan                        3    2    3    0    3    0    1    2    24    0    11776
        scan                        4    2    3    3    1    0    1    2    33    0    11712
        scan                        5    2    4    0    3    0    1    2    39    3    15808
        ",
    );
}

#[test]
fn t18b_a_pruned_chain_fills_its_fullest_dup_wherever_it_is() {
    let (host, joined) = joined_dup("0", [0..2, 4..5]);
    assert_eq!(joined, [5, 6, 7]);
    host.expect(
        "
        scan                        1    0    0    0    8    0    0    0     8    0     -512
        scan                        2    2    6    0    0    0    1    2    16    0    24064
        scan                        3    2    3    0    3    0    1    2    24    0    11776
        scan                        4    2    3    3    1    0    1    2    33    0    11712
        scan                        5    2    4    0    3    0    1    2    39    3    15808
        ",
    );
}

#[test]
fn t18d_a_chain_not_due_for_pruning_fills_its_newest_dup() {
    let (host, joined) = joined_dup("3600000", [0..2, 4..5]);
    assert_eq!(joined, [5, 6, 7]);
    host.expect(
        "
        scan                        1    0    0    0    8    0    0    0     8    0     -512
        scan                        2    2    6    0    0    0    1    2    16    0    24064
        scan                        3    2    3    0    3    0    1    2    24    0    11776
        scan                        4    2    3    3    1    0    1    2    33    0    11712
        scan                        5    2    4    0    3    0    1    2    39    3    15808
        ",
    );
}
