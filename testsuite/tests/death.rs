//! Nobody's death costs a byte: not the daemon's, not an agent's, not another app's.

use rustix::process::Signal;
use std::time::Duration;
use testsuite::content::mix;
use testsuite::daemon::Daemon;
use testsuite::wait::{until, until_true};
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const KILLS: u64 = 100;

fn pair(daemon: &Daemon, pages: usize) -> Vec<Worker> {
    let mut workers: Vec<Worker> = (0..2)
        .map(|_| Worker::start(KIT, &daemon.socket(), 0, pages))
        .collect();
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, pages, Content::Each(1)));
    workers
}

/// A moment that differs from round to round, by the same seed every time.
fn moment(round: u64, most: Duration) -> Duration {
    Duration::from_nanos(mix(round) % u64::try_from(most.as_nanos()).expect("a short time"))
}

#[test]
fn a_daemon_killed_again_and_again_costs_no_byte() {
    let mut daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 600);
    for round in 0..KILLS {
        daemon.scan_fast();
        // New contents, so that every round has something to merge when the blow falls.
        let part = usize::try_from(round % 6).expect("small") * 100;
        for worker in &mut workers {
            worker.ask(&format!("discard {part} 100"));
            worker.fill(part, 100, Content::Each(round + 2));
        }
        std::thread::sleep(moment(round, Duration::from_millis(60)));
        daemon.kill();
        workers.iter_mut().for_each(Worker::verify);
        daemon.restart();
    }
    daemon.scan_fast();
    for worker in &mut workers {
        worker.ask("discard 0 200");
        worker.fill(0, 200, Content::Each(1000));
    }
    until_true("merging to resume by itself", || {
        daemon.number("pages_sharing") >= 200
    });
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn pages_stay_merged_when_the_daemon_dies() {
    let mut daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 200);
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 200);
    daemon.kill();
    for worker in &mut workers {
        worker.verify();
        assert_eq!(worker.merged(), 200);
    }
    daemon.restart();
    daemon.scan_fast();
    daemon.wait_scans(3);
    for worker in &mut workers {
        assert_eq!(
            worker.merged(),
            200,
            "a new daemon does not unmerge what an old one merged"
        );
        worker.verify();
    }
}

#[test]
fn clients_killed_at_any_moment_disturb_nobody() {
    let daemon = Daemon::start(KIT);
    daemon.scan_fast();
    let mut lasting = Worker::start(KIT, &daemon.socket(), 0, 300);
    lasting.fill(0, 300, Content::Each(1));
    for round in 0..30 {
        let mut victim = Worker::start(KIT, &daemon.socket(), 0, 300);
        victim.fill(0, 300, Content::Each(1));
        std::thread::sleep(moment(round, Duration::from_millis(40)));
        victim.kill();
        lasting.verify();
    }
    let mut last = Worker::start(KIT, &daemon.socket(), 0, 300);
    last.fill(0, 300, Content::Each(1));
    until_true("merging with the living", || {
        daemon.number("pages_sharing") == 300 && daemon.number("pages_shared") == 300
    });
    lasting.verify();
    last.verify();
}

#[test]
fn a_stopped_client_is_merged_all_the_same() {
    let daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 200);
    until_true("agents to be there", || workers[1].ask("agent") != "0");
    workers[1].signal(Signal::STOP);
    until_true("the worker to be stopped", || {
        state_of(workers[1].pid()) == 'T'
    });
    daemon.scan_fast();
    until_true("merging with a stopped process", || {
        daemon.number("pages_sharing") == 200
    });
    assert_eq!(state_of(workers[1].pid()), 'T');
    daemon.write("run", "2");
    assert_eq!(
        daemon.number("pages_sharing"),
        0,
        "unmerged while it is stopped"
    );
    workers[1].signal(Signal::CONT);
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn an_agent_killed_at_any_moment_costs_no_byte() {
    let daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 400);
    daemon.scan_fast();
    for round in 0..30 {
        for worker in &mut workers {
            worker.ask("discard 0 400");
            worker.fill(0, 400, Content::Each(round + 5));
        }
        std::thread::sleep(moment(round, Duration::from_millis(25)));
        let agent: i32 = until("an agent", || {
            workers[0].ask("agent").parse().ok().filter(|a| *a > 0)
        });
        let agent = rustix::process::Pid::from_raw(agent).expect("a pid");
        let _ = rustix::process::kill_process(agent, Signal::KILL);
        workers.iter_mut().for_each(Worker::verify);
    }
    until_true("another agent to go on", || {
        daemon.number("pages_sharing") == 400
    });
    workers.iter_mut().for_each(Worker::verify);
}

fn state_of(pid: u32) -> char {
    let process = procfs::process::Process::new(i32::try_from(pid).expect("a pid"));
    process
        .and_then(|process| process.stat())
        .expect("own child")
        .state
}
