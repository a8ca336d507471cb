//! What one daemon merged the next one counts, and goes on with: nothing of it on trust.

use ksmfs::footprint::agents_of;
use rustix::process::{Pid, Signal, kill_process};
use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const PAGES: i64 = 300;

fn worker(daemon: &Daemon, seed: u64) -> Worker {
    let pages = usize::try_from(PAGES).expect("few");
    let mut worker = Worker::start(KIT, &daemon.socket(), 0, pages);
    worker.fill(0, pages, Content::Each(seed));
    worker
}

fn workers(daemon: &Daemon, count: usize) -> Vec<Worker> {
    (0..count).map(|_| worker(daemon, 1)).collect()
}

/// Waits until all pages of so many equal workers are merged, and counted.
fn all_merged(daemon: &Daemon, workers: i64) {
    until_true("all pages to be merged and counted", || {
        let shared = daemon.number("pages_shared");
        shared == PAGES && daemon.number("pages_sharing") == PAGES * (workers - 1)
    });
}

fn restart(daemon: &mut Daemon) {
    daemon.kill();
    daemon.restart();
    daemon.scan_fast();
}

/// Arenas that a process holds descriptors of.
fn arenas_held(pid: u32) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let targets = descriptors.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let inodes: std::collections::BTreeSet<_> = targets
        .filter(|target| target.to_string_lossy().contains("ksm-arena"))
        .collect();
    inodes.len()
}

#[test]
fn counters_come_back_after_a_daemon_was_killed_and_merging_goes_on() {
    let mut daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 2);
    daemon.scan_fast();
    all_merged(&daemon, 2);
    for _ in 0..3 {
        restart(&mut daemon);
        all_merged(&daemon, 2);
    }
    for worker in &mut workers {
        assert_eq!(worker.merged(), 300);
        worker.verify();
    }
    // A newcomer joins the pages of the dead daemon: there is no other memory of them.
    workers.push(worker(&daemon, 1));
    all_merged(&daemon, 3);
    // What is written is not counted any more, and merges again.
    let first = &mut workers[0];
    first.fill(0, 10, Content::Each(77));
    until_true("broken pages to be seen", || {
        daemon.number("pages_sharing") == PAGES * 2 - 10
    });
    // Everything becomes private, and all memory of arenas is given back. A private copy keeps its arena mapped.
    workers.remove(0).kill();
    daemon.write("run", "2");
    assert_eq!(daemon.number("pages_shared"), 0);
    for worker in &mut workers {
        assert_eq!(worker.merged(), 0);
        worker.verify();
    }
    let pids: Vec<u32> = workers.iter().map(Worker::pid).collect();
    let holders = agents_of(&pids);
    assert_eq!(holders.len(), 2);
    until_true("arenas to be let go", || {
        holders.iter().all(|pid| arenas_held(*pid) == 0)
    });
    until_true("arenas to be let go by the daemon", || {
        arenas_held(daemon.pid()) == 0
    });
}

#[test]
fn daemons_that_are_killed_in_quick_succession_lose_nothing() {
    let mut daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 2);
    daemon.scan_fast();
    all_merged(&daemon, 2);
    for _ in 0..5 {
        daemon.kill();
        daemon.restart();
    }
    // While arenas are taken over, and moved out of.
    for _ in 0..5 {
        restart(&mut daemon);
        daemon.wait_scans(4);
    }
    restart(&mut daemon);
    all_merged(&daemon, 2);
    workers.iter_mut().for_each(Worker::verify);
}

/// Another agent has none of the descriptors of the one that was killed: the daemon gives them.
#[test]
fn a_process_whose_agent_was_killed_still_hands_in_what_is_mapped() {
    let mut daemon = Daemon::start(KIT);
    let mut workers = workers(&daemon, 2);
    daemon.scan_fast();
    all_merged(&daemon, 2);
    for worker in &mut workers {
        let old = worker.ask("agent");
        let agent = old.parse().ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(agent, Signal::KILL).expect("the agent is there");
        let pid = worker.pid();
        until_true("another agent", || {
            let new = worker.ask("agent");
            new != "0" && new != old
        });
        until_true("the other agent to have a descriptor", || {
            agents_of(&[pid])
                .iter()
                .any(|agent| arenas_held(*agent) > 0)
        });
    }
    all_merged(&daemon, 2);
    restart(&mut daemon);
    all_merged(&daemon, 2);
    workers.iter_mut().for_each(Worker::verify);
}

/// A child that was forked between two daemons has nothing but the mappings; its parent, and later only it, hands in.
#[test]
fn a_forked_child_may_meet_another_daemon_than_its_parent() {
    let mut daemon = Daemon::start(KIT);
    let mut parents = workers(&daemon, 1);
    daemon.scan_fast();
    // One that has other pages, whose slots have the same numbers with the next daemon.
    let mut others = [worker(&daemon, 2), worker(&daemon, 2)];
    parents.push(worker(&daemon, 1));
    until_true("both kinds of pages to be merged", || {
        daemon.number("pages_shared") == PAGES * 2 && daemon.number("pages_sharing") == PAGES * 2
    });
    daemon.kill();
    let logs = tempfile::tempdir().expect("a directory");
    let log = logs.path().join("log");
    let child = parents[0].ask(&format!("fork-keep {}", log.display()));
    let child = child.parse().ok().and_then(Pid::from_raw).expect("a pid");
    daemon.restart();
    daemon.scan_fast();
    until_true("the child's pages to be counted as well", || {
        daemon.number("pages_shared") == PAGES * 2 && daemon.number("pages_sharing") == PAGES * 3
    });
    // Only the child is left of those who had them mapped, and what it was given.
    until_true("the child's agent to have descriptors", || {
        let child = child.as_raw_nonzero().get().unsigned_abs();
        agents_of(&[child])
            .iter()
            .any(|agent| arenas_held(*agent) > 0)
    });
    parents.into_iter().for_each(Worker::kill);
    restart(&mut daemon);
    until_true("the child's pages to be counted alone", || {
        daemon.number("pages_shared") == PAGES * 2 && daemon.number("pages_sharing") == PAGES
    });
    let text = std::fs::read_to_string(&log).expect("the child writes it");
    assert!(text.starts_with('0'), "the child: {text}");
    let _ = kill_process(child, Signal::KILL);
    others.iter_mut().for_each(Worker::verify);
}

#[test]
fn at_most_so_many_share_a_page_after_a_restart_too() {
    let mut daemon = Daemon::start(KIT);
    daemon.write("max_page_sharing", "2");
    let mut workers = workers(&daemon, 4);
    daemon.scan_fast();
    let two_dups = |daemon: &Daemon| {
        daemon.number("pages_shared") == PAGES * 2
            && daemon.number("pages_sharing") == PAGES * 2
            && daemon.number("stable_node_dups") == PAGES * 2
    };
    until_true("two pages of each content", || two_dups(&daemon));
    daemon.kill();
    daemon.restart();
    daemon.write("max_page_sharing", "2");
    daemon.scan_fast();
    until_true("two pages of each content again", || two_dups(&daemon));
    workers.push(worker(&daemon, 1));
    until_true("the newcomer to be left alone", || {
        two_dups(&daemon) && daemon.number("pages_unshared") == PAGES
    });
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn pages_that_were_merged_on_their_node_are_counted_where_nodes_count() {
    let mut daemon = Daemon::start(KIT);
    daemon.write("merge_across_nodes", "0");
    let mut workers = workers(&daemon, 2);
    daemon.scan_fast();
    all_merged(&daemon, 2);
    daemon.kill();
    daemon.restart();
    daemon.write("merge_across_nodes", "0");
    daemon.scan_fast();
    all_merged(&daemon, 2);
    // Where they do not, such pages are nobody's: a merged page may be on the wrong node.
    restart(&mut daemon);
    daemon.wait_scans(4);
    assert_eq!(daemon.number("pages_shared"), 0);
    workers.push(worker(&daemon, 1));
    workers.push(worker(&daemon, 1));
    all_merged(&daemon, 2);
    workers.iter_mut().for_each(Worker::verify);
}
