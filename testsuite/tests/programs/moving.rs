//! A program of its own that the distribution has none for: memory that is merged, moved, grown and shrunk (`mremap`)
//! by turns, every byte checked after each step.

use super::KIT;
use testsuite::daemon::Daemon;
use testsuite::programs::{exec, installed, said};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/moving.py");

#[test]
fn merged_memory_can_be_moved_and_resized() {
    if !installed(&["python3"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    daemon.scan_fast();
    for seed in ["1", "2", "3", "4"] {
        let most = said(exec(&daemon).args(["python3", PROGRAM, seed, "60"]));
        assert!(
            most.trim().parse::<u64>().is_ok_and(|most| most > 10),
            "{most}"
        );
    }
}
