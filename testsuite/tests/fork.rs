//! Children read what their parent had, whenever they were forked and whatever becomes of the parent.

use std::path::Path;
use testsuite::daemon::Daemon;
use testsuite::wait::{until, until_true};
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");

#[test]
fn a_child_forked_at_any_moment_of_merging_reads_what_the_parent_had() {
    let daemon = Daemon::start(KIT);
    let mut workers: Vec<Worker> = (0..2)
        .map(|_| Worker::start(KIT, &daemon.socket(), 0, 256))
        .collect();
    daemon.scan_fast();
    for round in 0..40 {
        for worker in &mut workers {
            worker.ask("discard 0 256");
            worker.fill(0, 256, Content::Each(round + 1));
        }
        for _ in 0..5 {
            workers
                .iter_mut()
                .for_each(|worker| worker.tell("fork-verify"));
            workers.iter_mut().for_each(|worker| drop(worker.hear()));
        }
    }
    workers.iter_mut().for_each(Worker::verify);
    assert!(daemon.number("pages_scanned") > 0);
}

/// A child that checks its memory over and over; it is ended when this is dropped.
struct Child {
    pid: rustix::process::Pid,
    log: std::path::PathBuf,
}

impl Child {
    fn of(worker: &mut Worker, log: &Path) -> Self {
        let pid = worker.ask(&format!("fork-keep {}", log.display()));
        let pid = pid
            .parse()
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .expect("a pid");
        Self {
            pid,
            log: log.to_owned(),
        }
    }

    /// Waits for a whole round of checks that began after now.
    fn checks(&self) {
        let rounds = || {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(!text.starts_with("wrong"), "the child: {text}");
            text.parse::<u64>().unwrap_or(0)
        };
        let from = rounds();
        until("two more rounds of the child", || {
            (rounds() >= from + 2).then_some(())
        });
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn a_child_outlives_the_parents_breaks_unmerging_and_death_and_the_arena() {
    let daemon = Daemon::start(KIT);
    // More than an arena, so that full ones can become empty and be let go.
    let pages = 9000;
    let mut workers: Vec<Worker> = (0..2)
        .map(|_| Worker::start(KIT, &daemon.socket(), 0, pages))
        .collect();
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, pages, Content::Each(1)));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") >= 9000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let child = Child::of(&mut workers[0], &dir.path().join("rounds"));
    child.checks();

    workers[0].fill(0, 4000, Content::Each(2));
    child.checks();
    workers[0].ask("unmergeable 4000 2000");
    child.checks();
    daemon.write("run", "2");
    child.checks();
    daemon.write("run", "1");
    workers.remove(0).kill();
    child.checks();
    workers.remove(0).kill();
    daemon.wait_scans(3);
    child.checks();
}
