//! Writers against an agent that merges as fast as it can.

use testsuite::daemon::Daemon;
use testsuite::wait::until;
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
    let merged = until("enough merges for a race", || {
        let merges: u64 = worker.ask("merges").parse().expect("a number");
        println!("{merges} pages merged");
        if merges <= MERGES {
            // On a busy machine it takes longer.
            worker.ask(&format!("race {}", SECONDS / 3));
        }
        (merges > MERGES).then_some(merges)
    });
    println!("{merged} pages merged in at least {SECONDS} s");
    worker.verify();
}
