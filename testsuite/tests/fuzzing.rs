//! The corpora of the fuzz targets, replayed; and what fuzzing found, each case by its name.
//!
//! `fuzz/run` is the fuzzing itself.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target)
}

/// Says which input it was.
struct Input(PathBuf);

impl Drop for Input {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input: {}", self.0.display());
        }
    }
}

fn replay(target: &str) {
    let inputs = std::fs::read_dir(corpus(target)).expect("every target has a corpus");
    let mut count = 0;
    for input in inputs {
        let input = Input(input.expect("readable").path());
        fuzz::run(target, &std::fs::read(&input.0).expect("readable"));
        count += 1;
    }
    assert!(count > 10, "{count} inputs are no corpus");
}

#[test]
fn messages_to_the_daemon() {
    replay("to_daemon");
}

#[test]
fn messages_to_an_agent() {
    replay("to_agent");
}

#[test]
fn knobs() {
    replay("knobs");
}

#[test]
fn the_tree() {
    replay("tree");
}

#[test]
fn the_engine() {
    replay("engine");
}

#[test]
fn a_host() {
    replay("host");
}

#[test]
fn every_target_has_its_program() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    for target in fuzz::TARGETS {
        let program = programs.join(target).with_extension("rs");
        let text = std::fs::read_to_string(program).expect("a program for each target");
        assert!(text.contains(&format!("run(\"{target}\"")), "{target}");
    }
}

/// A count of zero pages is under way while nothing is scanned: the audit took it for an order of a batch.
#[test]
fn found_a_count_between_two_batches() {
    fuzz::run("engine", b"\x04\x00\x3f\x0a\x2e");
}

/// Files of processes are not in the listing: the model said that there are none.
#[test]
fn found_a_file_of_a_process_is_opened() {
    let open = b"\x00\xff\x07\x00\x00\x00\x01\x00\x00\x00\x00\x00";
    let read = b"\x02\x00\x00\x00\x40";
    fuzz::run("tree", &[&open[..], read].concat());
}

/// Equal pages at one address of a family, in two frames each of which a fork shares, are taken for one frame: the
/// simulator expected them to merge.
#[test]
fn found_two_shared_frames_at_one_address_of_a_family() {
    fuzz::run("host", b"\x00\x00\x94lkks\x94mm\x9e4imA\x81imA\x81\x81a");
}
