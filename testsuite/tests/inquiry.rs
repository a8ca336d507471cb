//! What can be asked of a daemon beyond the kernel's files: processes with reasons, a scan now, what a merge would save.

use ksm_engine::order::Outcome;
use ksm_engine::wire::ProcessFigures;
use ksmfs::settle::{SettleError, settle};
use std::time::Duration;
use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const PAGES: u64 = 100;

fn worker(daemon: &Daemon, uid: u32, seed: u64) -> Worker {
    let pages = usize::try_from(PAGES).expect("few");
    let mut worker = Worker::start(KIT, &daemon.socket(), uid, pages);
    worker.fill(0, pages, Content::Each(seed));
    worker
}

fn processes(daemon: &Daemon) -> Vec<ProcessFigures> {
    ksmfs::ask::processes(&daemon.socket()).expect("the daemon answers")
}

fn of(daemon: &Daemon, worker: &Worker) -> ProcessFigures {
    let all = processes(daemon);
    let found = all.iter().find(|process| process.pid == worker.pid());
    *found.expect("it has joined")
}

fn scan(daemon: &Daemon, times: u32) {
    for _ in 0..times {
        ksmfs::ask::scan(&daemon.socket()).expect("the daemon answers");
    }
}

/// Scans until something holds: an agent that is late is left out of a scan.
fn scan_until(daemon: &Daemon, what: &str, mut holds: impl FnMut() -> bool) {
    until_true(what, || {
        scan(daemon, 1);
        holds()
    });
}

/// Everything is known of each process, and a scan that is asked for is over when the answer comes, though nobody has
/// turned scanning on.
#[test]
fn scans_on_demand_merge_and_each_process_is_told_of() {
    let daemon = Daemon::start(KIT);
    daemon.write("smart_scan", "0");
    let mut workers = [
        worker(&daemon, 0, 1),
        worker(&daemon, 0, 1),
        worker(&daemon, 1234, 2),
    ];
    workers[2].fill(0, 10, Content::Same(9));
    // One to see the pages, one to see that they are calm.
    scan(&daemon, 2);
    assert_eq!(daemon.number("run"), 0);
    assert_eq!(daemon.number("full_scans"), 2);
    scan_until(&daemon, "all to be merged", || {
        let merged = workers.iter().map(|worker| of(&daemon, worker).merged);
        merged.eq([PAGES, PAGES, 10])
    });
    for worker in &workers[..2] {
        let process = of(&daemon, worker);
        assert_eq!((process.registered, process.unshared), (PAGES, 0));
        assert_eq!((process.uid, process.volatile()), (0, 0));
        assert_eq!(process.profit, 100 * 4096 - 100 * 64);
    }
    let alone = of(&daemon, &workers[2]);
    assert_eq!((alone.uid, alone.domain), (1234, 1234));
    scan_until(&daemon, "the others to wait for twins", || {
        let alone = of(&daemon, &workers[2]);
        (alone.merged, alone.unshared, alone.volatile()) == (10, 90, 0)
    });
    assert_eq!(daemon.number("run"), 0);
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn why_pages_did_not_merge_is_counted_for_each_process() {
    let daemon = Daemon::start(KIT);
    daemon.write("smart_scan", "0");
    let workers = [worker(&daemon, 0, 1), worker(&daemon, 0, 1)];
    scan_until(&daemon, "two to be merged", || {
        workers
            .iter()
            .all(|worker| of(&daemon, worker).merged == PAGES)
    });
    // Nobody can map anything any more: pages of the third are seen to be equal, and cannot be merged.
    let mut full = worker(&daemon, 0, 1);
    full.ask("fill-maps");
    scan_until(&daemon, "pages to be held back by maps", || {
        of(&daemon, &full).reasons[Outcome::NoMaps as usize] > 0
    });
    assert_eq!(
        of(&daemon, &workers[0]).reasons[Outcome::NoMaps as usize],
        0
    );
    full.verify();
}

#[test]
fn a_dry_run_merges_nothing_and_says_what_would_be_saved() {
    let daemon = Daemon::start_as(KIT, &["dry-run"]);
    daemon.write("smart_scan", "0");
    let mut workers = [1, 1, 1, 2].map(|seed| worker(&daemon, 0, seed));
    let would_merge = |daemon: &Daemon| {
        let all = processes(daemon);
        all.iter().map(|process| process.would_merge).sum::<u64>()
    };
    scan_until(&daemon, "two of three pages to be saved", || {
        would_merge(&daemon) == 2 * PAGES
    });
    assert_eq!(daemon.number("pages_shared"), 0);
    assert!(workers.iter_mut().all(|worker| worker.merged() == 0));
    workers[0].fill(0, 40, Content::Each(5));
    scan_until(&daemon, "fewer to be saved", || {
        would_merge(&daemon) == 2 * PAGES - 40
    });
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn waiting_until_nothing_changes_any_more() {
    let daemon = Daemon::start(KIT);
    let mount = daemon.mount();
    let mut workers = [worker(&daemon, 0, 1), worker(&daemon, 0, 1)];
    let refused = settle(Some(&mount), 2, None);
    assert!(matches!(refused, Err(SettleError::NotScanning(_))));
    daemon.scan_fast();
    settle(Some(&mount), 3, None).expect("it settles");
    assert_eq!(daemon.number("pages_sharing"), 100);
    // Asked while scanning goes on: the scan that is under way does not count.
    let before = daemon.number("full_scans");
    scan(&daemon, 1);
    assert!(daemon.number("full_scans") > before);
    // A wait that cannot end does not last for ever.
    daemon.write("sleep_millisecs", "60000");
    let impatient = settle(Some(&mount), 1_000_000, Some(Duration::from_millis(50)));
    assert!(matches!(impatient, Err(SettleError::TimedOut(_))));
    // Whoever has no processes to scan, or ends them, is answered as well.
    workers.iter_mut().for_each(Worker::verify);
    drop(workers);
    until_true("the processes to be gone", || processes(&daemon).is_empty());
    scan(&daemon, 2);
}
