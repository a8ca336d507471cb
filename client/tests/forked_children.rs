//! Children of an app: they inherit its memory, and get a steward of their own if they live long enough.

mod daemon_double;

use daemon_double::{App, DaemonDouble, pause, say, socket, wait_for};
use ksm_client::{Client, Config, LinkState};
use ksm_engine::page::PageRun;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::time::{Duration, Instant};

const PAGES: usize = 8;
/// What ends sooner is not connected: the steward's own time is longer.
const CHILDHOOD: Duration = Duration::from_millis(40);

fn run_of(region: &[u8]) -> PageRun {
    PageRun {
        start: region.as_ptr().addr() as u64 / 4096,
        len: region.len() as u64 / 4096,
    }
}

fn say_run(run: PageRun) {
    say(&format!("{} {}", run.start, run.len));
}

/// Forks; in the child runs `child` and ends.
#[allow(unsafe_code, reason = "there is no safe fork")]
fn fork(child: impl FnOnce()) -> Pid {
    // SAFETY: the child uses what a forked child of a program with threads may use: glibc's heap, and no lock of ours.
    match unsafe { libc::fork() } {
        0 => {
            child();
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).expect("fork"),
    }
}

fn reap(child: Pid) {
    let (_, status) = waitpid(Some(child), WaitOptions::empty())
        .expect("a child")
        .expect("it ended");
    assert_eq!(status.exit_status(), Some(0));
}

#[test]
#[ignore = "an app"]
fn app_that_forks() {
    let client = Client::start(&Config::default().socket(socket())).expect("a client");
    let mut region = client.allocate(PAGES * 4096).expect("memory");
    region.fill(0x5a);
    say_run(run_of(&region));
    let lived_long = (0..20).filter(|_| {
        let forked = Instant::now();
        reap(fork(|| assert!(region.iter().all(|byte| *byte == 0x5a))));
        forked.elapsed() >= CHILDHOOD
    });
    say(&lived_long.count().to_string());
    pause();
    let child = fork(|| {
        say(&std::process::id().to_string());
        wait_for("a daemon", || {
            (client.status().link == LinkState::Connected).then_some(())
        });
        let mut more = client.allocate(4096).expect("memory");
        more.fill(1);
        say_run(run_of(&more));
        pause();
        assert!(region.iter().all(|byte| *byte == 0x5a));
    });
    reap(child);
    pause();
}

#[test]
fn a_child_that_lives_registers_what_it_inherited_and_brief_ones_cost_no_connection() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_forks", &daemon.path());
    let mut parent = daemon.welcome();
    let inherited = app.hear_run();
    parent.await_registration(inherited);
    // On a busy machine ending at once can take long, and is then no different from living.
    let lived_long = app.hear_numbers()[0];
    let mut callers = 0;
    while daemon.has_caller(Duration::from_millis(200)) {
        drop(daemon.accept());
        callers += 1;
    }
    assert!(
        callers <= lived_long,
        "{callers} connected, {lived_long} did not end at once"
    );
    app.go_on();
    let child = app.hear_numbers()[0];
    let mut peer = daemon.welcome();
    let hello = peer.hello.expect("greeted");
    assert_eq!(u64::from(hello.pid), child);
    assert_eq!(hello.parent, app.pid());
    peer.await_registration(inherited);
    let more = app.hear_run();
    peer.await_registration(more);
    assert!(peer.visit(inherited), "the child's agent works");
    assert!(parent.visit(inherited), "and the parent's still does");
    app.go_on();
    while peer.receive().is_some() {}
    app.finish();
}

#[test]
#[ignore = "an app"]
fn app_that_forks_all_the_time() {
    let client = Client::start(&Config::default().socket(socket())).expect("a client");
    let region = client.allocate(PAGES * 4096).expect("memory");
    say_run(run_of(&region));
    let threads: Vec<_> = (0..3_u8)
        .map(|thread| {
            std::thread::spawn(move || {
                for round in 0..60_u8 {
                    let mut mine = client.allocate(2 * 4096).expect("memory");
                    mine.fill(thread ^ round);
                    reap(fork(|| {
                        assert!(mine.iter().all(|byte| *byte == thread ^ round));
                    }));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no child saw wrong bytes");
    }
    say("done");
    pause();
}

#[test]
fn threads_that_fork_and_register_at_once_do_not_lock_each_other_out() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_forks_all_the_time", &daemon.path());
    let mut peer = daemon.welcome();
    let run = app.hear_run();
    peer.await_registration(run);
    let done = std::thread::spawn(move || {
        assert_eq!(app.hear(), "done");
        app
    });
    while !done.is_finished() {
        assert!(peer.visit(run));
    }
    done.join().expect("the app is done").finish();
}
