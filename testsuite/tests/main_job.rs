//! The main job: identical pages of separate processes become one, under the kernel's own knobs.

use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");

fn workers(daemon: &Daemon, count: usize, pages: usize) -> Vec<Worker> {
    (0..count)
        .map(|_| Worker::start(KIT, &daemon.socket(), 0, pages))
        .collect()
}

#[test]
fn identical_pages_of_separate_processes_become_one() {
    let daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 3, 400);
    for (seed, worker) in (10..).zip(&mut workers) {
        worker.fill(0, 300, Content::Each(1));
        worker.fill(300, 100, Content::Each(seed));
    }
    daemon.scan_fast();
    until_true("the equal pages to merge", || {
        daemon.number("pages_sharing") == 600
    });
    assert_eq!(daemon.number("pages_shared"), 300);
    until_true("the others to be known as unshared", || {
        daemon.number("pages_unshared") == 300
    });
    assert_eq!(daemon.number("pages_volatile"), 0);
    assert_eq!(daemon.number("general_profit"), 600 * 4096 - 1200 * 64);
    for worker in &mut workers {
        worker.verify();
        assert_eq!(worker.merged(), 300);
        assert_eq!(
            worker.ask("figures"),
            format!("400 0 300 {}", 300 * 4096 - 400 * 64)
        );
    }

    workers[0].fill(0, 100, Content::Each(77));
    until_true("the rewritten pages to be noticed", || {
        daemon.number("pages_sharing") == 500 && daemon.number("pages_shared") == 300
    });
    for worker in &mut workers {
        worker.verify();
    }
}

#[test]
fn stopping_keeps_what_is_merged_and_unmerging_gives_every_page_back() {
    let daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 2, 200);
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 200, Content::Each(1)));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 200);

    daemon.write("run", "0");
    let scanned = daemon.number("pages_scanned");
    workers[0].fill(0, 10, Content::Each(2));
    assert_eq!(
        daemon.number("pages_sharing"),
        200,
        "counters stand still with run=0"
    );

    daemon.write("run", "2");
    for counter in [
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "pages_volatile",
    ] {
        assert_eq!(daemon.number(counter), 0, "{counter} after unmerging");
    }
    assert_eq!(daemon.number("full_scans"), 0);
    assert_eq!(
        daemon.number("pages_scanned"),
        scanned,
        "unmerging scans nothing"
    );
    for worker in &mut workers {
        assert_eq!(
            worker.merged(),
            0,
            "no page is shared any more when the write returns"
        );
        worker.verify();
    }

    daemon.write("run", "1");
    until_true("merging again", || daemon.number("pages_sharing") == 190);
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn a_region_taken_back_is_private_when_the_call_returns() {
    let daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 2, 100);
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 100, Content::Each(1)));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 100);
    workers[0].ask("unmergeable 20 30");
    assert_eq!(workers[0].merged(), 70);
    until_true("the counters to follow", || {
        daemon.number("pages_sharing") == 70
    });
    assert_eq!(daemon.number("pages_shared"), 100);
    workers.iter_mut().for_each(Worker::verify);
    workers[0].ask("mergeable 20 30");
    until_true("merging again", || daemon.number("pages_sharing") == 100);
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn discarded_pages_read_as_zero_merged_or_not() {
    let daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 2, 100);
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 50, Content::Each(1)));
    workers[0].fill(50, 50, Content::Each(2));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 50);
    workers[0].ask("discard 25 50");
    workers[0].verify();
    until_true("the counters to follow", || {
        daemon.number("pages_sharing") == 25
    });
    workers[0].fill(25, 25, Content::Each(1));
    workers[0].verify();
    until_true("fresh pages to merge again", || {
        daemon.number("pages_sharing") == 50
    });
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn zero_pages_take_no_slot() {
    let daemon = Daemon::start(KIT);
    daemon.write("use_zero_pages", "1");
    let mut worker = Worker::start(KIT, &daemon.socket(), 0, 100);
    worker.fill(0, 60, Content::Zero);
    worker.fill(60, 40, Content::Each(1));
    daemon.scan_fast();
    until_true("zero pages", || daemon.number("ksm_zero_pages") == 60);
    daemon.wait_scans(2);
    assert_eq!(daemon.number("pages_shared"), 0);
    worker.verify();
    worker.fill(0, 10, Content::Each(2));
    worker.verify();
    until_true("written zero pages to be noticed", || {
        daemon.number("ksm_zero_pages") == 50
    });
}

#[test]
fn no_merged_page_has_more_sharers_than_allowed() {
    let daemon = Daemon::start(KIT);
    daemon.write("max_page_sharing", "10");
    let mut workers = workers(&daemon, 2, 25);
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 25, Content::Same(9)));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 45);
    assert_eq!(daemon.number("pages_shared"), 5);
    assert_eq!(daemon.number("stable_node_chains"), 1);
    assert_eq!(daemon.number("stable_node_dups"), 5);
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn pages_to_scan_and_sleep_set_the_pace() {
    let daemon = Daemon::start(KIT);
    let mut worker = Worker::start(KIT, &daemon.socket(), 0, 100);
    worker.fill(0, 100, Content::Each(1));
    daemon.write("pages_to_scan", "10");
    daemon.write("sleep_millisecs", "3600000");
    daemon.write("run", "1");
    for step in 1..=10 {
        until_true("one batch", || daemon.number("pages_scanned") == step * 10);
        assert_eq!(daemon.number("full_scans"), 0);
        daemon.write(
            "sleep_millisecs",
            if step % 2 == 0 { "3600000" } else { "3600001" },
        );
    }
    until_true("the end of the scan to be noticed", || {
        daemon.number("full_scans") == 1
    });
    assert_eq!(daemon.number("pages_scanned"), 100);
}

#[test]
fn an_app_started_before_the_daemon_is_merged_when_it_comes() {
    let mut daemon = Daemon::start(KIT);
    daemon.kill();
    let mut workers = workers(&daemon, 2, 50);
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 50, Content::Each(1)));
    workers.iter_mut().for_each(Worker::verify);
    daemon.restart();
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 50);
    workers.iter_mut().for_each(Worker::verify);
}
