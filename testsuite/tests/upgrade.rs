//! Daemons and clients are brought up to date one after the other, and nothing is unmerged for it.

use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const PAGES: i64 = 200;
/// The versions of the protocol that older programs speak, from the oldest to the one before this, and those of this one.
const OLDER: &str = "4-4";
const MIDDLE: &str = "4-5";
const LAST: &str = "4-6";
const NEWER: &str = "4-7";

fn worker(daemon: &Daemon, versions: &str) -> Worker {
    let pages = usize::try_from(PAGES).expect("few");
    let mut worker = Worker::start_speaking(KIT, versions, &daemon.socket(), 0, pages);
    worker.fill(0, pages, Content::Each(1));
    worker
}

fn all_merged(daemon: &Daemon, workers: i64) {
    until_true("all pages to be merged and counted", || {
        let shared = daemon.number("pages_shared");
        shared == PAGES && daemon.number("pages_sharing") == PAGES * (workers - 1)
    });
}

/// Merges, is written to, merges again, is unmerged.
fn is_served(daemon: &Daemon, workers: &mut [Worker]) {
    let count = i64::try_from(workers.len()).expect("few");
    daemon.scan_fast();
    all_merged(daemon, count);
    workers[0].ask("discard 0 50");
    workers[0].fill(0, 50, Content::Each(1));
    all_merged(daemon, count);
    workers.iter_mut().for_each(Worker::verify);
    daemon.write("run", "2");
    for worker in workers {
        assert_eq!(worker.merged(), 0);
        worker.verify();
    }
}

#[test]
fn an_older_client_merges_with_newer_ones_at_a_newer_daemon() {
    let daemon = Daemon::start_speaking(KIT, NEWER);
    let mut workers = [OLDER, NEWER, LAST, MIDDLE].map(|versions| worker(&daemon, versions));
    is_served(&daemon, &mut workers);
}

#[test]
fn a_newer_client_merges_at_an_older_daemon() {
    for older in [OLDER, MIDDLE, LAST] {
        let daemon = Daemon::start_speaking(KIT, older);
        let mut workers = [NEWER, OLDER, NEWER].map(|versions| worker(&daemon, versions));
        is_served(&daemon, &mut workers);
    }
}

#[test]
fn a_newer_daemon_goes_on_with_what_an_older_one_merged() {
    let mut daemon = Daemon::start_speaking(KIT, OLDER);
    let mut workers = [NEWER, NEWER].map(|versions| worker(&daemon, versions));
    daemon.scan_fast();
    all_merged(&daemon, 2);
    daemon.kill();
    daemon.speak(NEWER);
    daemon.restart();
    daemon.scan_fast();
    all_merged(&daemon, 2);
    for worker in &mut workers {
        assert_eq!(worker.merged(), 200);
        worker.verify();
    }
    // And back again: nothing is counted, nothing is lost.
    daemon.kill();
    daemon.speak(OLDER);
    daemon.restart();
    daemon.scan_fast();
    daemon.wait_scans(3);
    assert_eq!(daemon.number("pages_shared"), 0);
    for worker in &mut workers {
        assert_eq!(worker.merged(), 200);
        worker.verify();
    }
}

#[test]
fn programs_with_no_version_in_common_say_so_and_go_on() {
    let mut daemon = Daemon::start_speaking(KIT, "5-5");
    let mut old = worker(&daemon, OLDER);
    until_true("the reason to be known", || {
        let link = old.ask("link");
        link.contains("no version of the protocol")
    });
    old.verify();
    // It finds a daemon that speaks its version when one comes.
    daemon.kill();
    daemon.speak(NEWER);
    daemon.restart();
    let other = worker(&daemon, NEWER);
    is_served(&daemon, &mut [old, other]);
}
