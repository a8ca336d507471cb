//! Writers against an agent that merges as fast as it can.

use testsuite::daemon::Daemon;
use testsuite::worker::Worker;

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const SECONDS: u64 = 30;
const MERGES: u64 = 10_000;

#[test]
fn four_writers_lose_nothing_to_merging() {
    let daemon = Daemon::start(KIT);
    let mut worker = Worker::start(KIT, &daemon.socket(), 0, 2048);
    daemon.scan_fast();
    daemon.write("sleep_millisecs", "0");
    worker.ask(&format!("race {SECONDS}"));
    let merges: u64 = worker.ask("merges").parse().expect("a number");
    println!("{merges} pages merged in {SECONDS} s");
    assert!(
        merges > MERGES,
        "only {merges} merges: the race was no race"
    );
    worker.verify();
}
