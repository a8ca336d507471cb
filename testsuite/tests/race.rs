//! Writers against an agent that merges as fast as it can, while the kernel moves pages to other frames.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testsuite::daemon::Daemon;
use testsuite::wait::until;
use testsuite::worker::Worker;

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const SECONDS: u64 = 30;
const MERGES: u64 = 10_000;

/// Says that it is over, however it ended.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the kernel compact memory now and then until it is over; how often. Only root may.
fn compact(over: &AtomicBool) -> u32 {
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        match std::fs::write("/proc/sys/vm/compact_memory", "1") {
            Ok(()) => times += 1,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "compact_memory: {error}");
                println!("memory is not compacted meanwhile: {error}");
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    times
}

#[test]
fn four_writers_lose_nothing_to_merging() {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let compacting = scope.spawn(|| compact(&over));
        let raced = Over(&over);
        race();
        drop(raced);
        let times = compacting.join().expect("it does not panic");
        println!("memory compacted {times} times");
    });
}

fn race() {
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
