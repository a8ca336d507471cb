//! The life of steward and agent, from the first connection to the app's end.

mod daemon_double;

use daemon_double::{App, DaemonDouble, Peer, await_end, pause, say, socket, state_of, wait_for};
use ksm_client::{Client, Config, LinkState, MergeableRegion};
use ksm_engine::page::PageRun;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use std::time::Duration;

const LEN: usize = 16 * 4096;

fn start() -> Client {
    Client::start(&Config::default().socket(socket())).expect("a client")
}

fn run_of(region: &[u8]) -> PageRun {
    PageRun {
        start: region.as_ptr().addr() as u64 / 4096,
        len: region.len() as u64 / 4096,
    }
}

fn say_run(region: &[u8]) {
    let run = run_of(region);
    say(&format!("{} {}", run.start, run.len));
}

fn pattern(byte: usize) -> u8 {
    u8::try_from(byte % 251).expect("below 251")
}

fn filled(client: Client) -> MergeableRegion {
    let mut region = client.allocate(LEN).expect("memory");
    for (i, byte) in region.iter_mut().enumerate() {
        *byte = pattern(i);
    }
    region
}

fn check(region: &[u8]) {
    assert!(
        region
            .iter()
            .enumerate()
            .all(|(i, byte)| *byte == pattern(i))
    );
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("not 0")
}

fn agent_of(client: Client) -> u32 {
    wait_for("an agent", || client.status().agent)
}

/// Starts an app, welcomes its agent, and hears of its region.
fn served(name: &str, daemon: &DaemonDouble) -> (App, Peer, PageRun) {
    let mut app = App::start(name, &daemon.path());
    let mut peer = daemon.welcome();
    let run = app.hear_run();
    peer.await_registration(run);
    (app, peer, run)
}

#[test]
#[ignore = "an app"]
fn app_that_waits() {
    let client = start();
    let region = filled(client);
    say_run(&region);
    pause();
    check(&region);
    say(&agent_of(client).to_string());
    pause();
    check(&region);
    drop(region);
}

#[test]
fn an_app_connects_registers_and_follows_orders() {
    let daemon = DaemonDouble::new();
    let (mut app, mut peer, run) = served("app_that_waits", &daemon);
    let hello = peer.hello.expect("greeted");
    assert_eq!((hello.pid, hello.parent), (app.pid(), 0));
    assert!(peer.visit(run));
    app.go_on();
    app.hear();
    app.finish();
    peer.await_unregistration(run);
    assert_eq!(peer.receive(), None, "the app's end hangs up");
}

#[test]
fn orders_are_followed_and_a_daemon_is_found_again_while_the_app_is_stopped() {
    let daemon = DaemonDouble::new();
    let (mut app, mut peer, run) = served("app_that_waits", &daemon);
    app.signal(Signal::STOP);
    wait_for("the app to stop", || {
        (state_of(app.pid()) == Some('T')).then_some(())
    });
    assert!(peer.visit(run), "an order to a stopped app");

    drop(peer);
    let mut peer = daemon.welcome();
    assert_eq!(peer.hello.expect("greeted").pid, app.pid());
    peer.await_registration(run);
    assert!(peer.visit(run), "an order of another daemon");
    assert_eq!(state_of(app.pid()), Some('T'));

    app.signal(Signal::CONT);
    app.go_on();
    app.hear();
    app.finish();
}

#[test]
fn a_killed_agent_is_replaced_and_nothing_is_lost() {
    let daemon = DaemonDouble::new();
    let (mut app, mut peer, run) = served("app_that_waits", &daemon);
    assert!(peer.visit(run));
    app.go_on();
    let agent = app.hear_numbers()[0];
    let agent = u32::try_from(agent).expect("a pid");
    kill_process(pid(agent), Signal::KILL).expect("the agent is there");
    let mut peer = daemon.welcome();
    assert_eq!(peer.hello.expect("greeted").pid, app.pid());
    peer.await_registration(run);
    assert!(peer.visit(run));
    assert_eq!(state_of(agent), None, "the dead agent was waited for");
    app.finish();
}

#[test]
fn signals_to_the_agent_do_not_end_it() {
    let daemon = DaemonDouble::new();
    let (mut app, mut peer, run) = served("app_that_waits", &daemon);
    app.go_on();
    let agent = u32::try_from(app.hear_numbers()[0]).expect("a pid");
    for signal in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::URG,
        Signal::USR1,
    ] {
        kill_process(pid(agent), signal).expect("the agent is there");
    }
    assert!(peer.visit(run));
    let name = std::fs::read_to_string(format!("/proc/{agent}/comm")).expect("it lives");
    assert_eq!(name, "ksm-agent\n");
    app.finish();
}

#[test]
fn the_agent_ends_with_an_app_that_is_killed() {
    let daemon = DaemonDouble::new();
    let (mut app, mut peer, _) = served("app_that_waits", &daemon);
    app.go_on();
    let agent = u32::try_from(app.hear_numbers()[0]).expect("a pid");
    app.signal(Signal::KILL);
    app.wait();
    await_end(agent);
    while peer.receive().is_some() {}
}

#[test]
#[ignore = "an app"]
fn app_that_execs() {
    use std::os::unix::process::CommandExt;
    let client = start();
    let region = filled(client);
    say_run(&region);
    say(&agent_of(client).to_string());
    pause();
    let error = std::process::Command::new("sleep").arg("1000").exec();
    panic!("exec: {error}");
}

#[test]
fn the_agent_ends_with_an_exec() {
    let daemon = DaemonDouble::new();
    let (mut app, mut peer, _) = served("app_that_execs", &daemon);
    let agent = u32::try_from(app.hear_numbers()[0]).expect("a pid");
    app.go_on();
    let name = format!("/proc/{}/comm", app.pid());
    wait_for("the exec", || {
        let name = std::fs::read_to_string(&name).ok()?;
        (name == "sleep\n").then_some(())
    });
    await_end(agent);
    while peer.receive().is_some() {}
}

#[test]
#[ignore = "an app"]
fn app_that_waits_for_its_children() {
    let client = start();
    let region = filled(client);
    say_run(&region);
    agent_of(client);
    let any = || {
        let found = rustix::process::waitpid(None, WaitOptions::NOHANG)?;
        Ok(found.map(|(child, _)| child))
    };
    assert_eq!(any(), Err(Errno::CHILD), "the agent is nobody's business");
    let child = std::process::Command::new("true").spawn().expect("true");
    let found = wait_for("the child", || any().expect("one child"));
    assert_eq!(found, pid(child.id()));
    drop(child);
    assert_eq!(any(), Err(Errno::CHILD));
    pause();
}

#[test]
fn the_app_does_not_see_the_agent_among_its_children() {
    let daemon = DaemonDouble::new();
    let (app, _peer, _) = served("app_that_waits_for_its_children", &daemon);
    app.finish();
}

#[test]
#[ignore = "an app"]
fn app_that_counts_its_descriptors() {
    let count = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let before = count();
    let client = start();
    let region = filled(client);
    say_run(&region);
    agent_of(client);
    assert_eq!(count(), before);
    // An app that closes what it does not know must not harm us either.
    for fd in 3..256 {
        close_blindly(fd);
    }
    pause();
    check(&region);
}

#[allow(
    unsafe_code,
    reason = "closing descriptors of somebody else is what is tested"
)]
fn close_blindly(fd: i32) {
    // SAFETY: nothing in this process uses a descriptor above 2 any more. Fails where there is none.
    unsafe { libc::close(fd) };
}

#[test]
fn the_client_takes_no_descriptors_of_the_app_and_survives_their_closing() {
    let daemon = DaemonDouble::new();
    let (app, mut peer, run) = served("app_that_counts_its_descriptors", &daemon);
    assert!(peer.visit(run));
    app.finish();
}

#[test]
#[ignore = "an app"]
fn app_without_daemon() {
    let began = std::time::Instant::now();
    let client = start();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "nobody to wait for"
    );
    let region = filled(client);
    let link = client.status().link;
    assert!(matches!(link, LinkState::NoDaemon(_)), "{link:?}");
    client.figures().expect_err("nobody to ask");
    say_run(&region);
    pause();
    check(&region);
}

#[test]
fn an_app_starts_without_a_daemon_and_finds_it_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = daemon_double::path_in(directory.path());
    let mut app = App::start("app_without_daemon", &path);
    let run = app.hear_run();
    let daemon = DaemonDouble::in_directory(directory);
    let mut peer = daemon.welcome();
    peer.await_registration(run);
    assert!(peer.visit(run));
    app.finish();
}

#[test]
#[ignore = "an app"]
fn app_of_nobody() {
    let nobody = rustix::process::Uid::from_raw(65534);
    become_user(nobody);
    // As it would be if nobody had started it: it may look into its own /proc.
    let behavior = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(behavior).expect("prctl");
    let client = start();
    let region = filled(client);
    say_run(&region);
    pause();
    check(&region);
}

#[allow(unsafe_code, reason = "rustix changes the thread only")]
fn become_user(user: rustix::process::Uid) {
    let user = user.as_raw();
    // SAFETY: the call takes numbers.
    assert_eq!(unsafe { libc::setresuid(user, user, user) }, 0);
}

#[test]
fn an_app_without_privilege_is_served_through_the_daemons_device() {
    let daemon = DaemonDouble::new();
    let (app, mut peer, run) = served("app_of_nobody", &daemon);
    assert_eq!(peer.credentials().0, 65534);
    assert!(peer.visit(run));
    app.finish();
}

#[test]
#[ignore = "an app"]
fn app_that_drops_its_privileges() {
    let client = start();
    let region = filled(client);
    say_run(&region);
    let before = agent_of(client);
    pause();
    become_user(rustix::process::Uid::from_raw(65534));
    let after = wait_for("another agent", || {
        client.status().agent.filter(|agent| *agent != before)
    });
    say(&after.to_string());
    pause();
    check(&region);
}

#[test]
fn the_agent_does_not_keep_privileges_that_the_app_gave_up() {
    let daemon = DaemonDouble::new();
    let (mut app, peer, run) = served("app_that_drops_its_privileges", &daemon);
    assert_eq!(peer.credentials().0, 0);
    app.go_on();
    let mut peer = daemon.welcome();
    assert_eq!(peer.credentials().0, 65534);
    peer.await_registration(run);
    let agent = app.hear_numbers()[0];
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).expect("it lives");
    let ids = status.lines().find(|line| line.starts_with("Uid:"));
    assert_eq!(ids, Some("Uid:\t65534\t65534\t65534\t65534"));
    assert!(peer.visit(run));
    app.finish();
}

#[test]
#[ignore = "an app"]
fn app_that_drops_its_privileges_and_ends() {
    let client = start();
    let region = filled(client);
    say_run(&region);
    say(&agent_of(client).to_string());
    pause();
    become_user(rustix::process::Uid::from_raw(65534));
    kill_process(rustix::process::getpid(), Signal::KILL).expect("oneself");
}

#[test]
fn the_agent_ends_with_an_app_that_may_not_signal_it_any_more() {
    for _ in 0..10 {
        // Each time a new one: the steward may come as far as to connect again.
        let daemon = DaemonDouble::new();
        let (mut app, _peer, _) = served("app_that_drops_its_privileges_and_ends", &daemon);
        let agent = u32::try_from(app.hear_numbers()[0]).expect("a pid");
        app.go_on();
        app.wait();
        await_end(agent);
    }
}

#[test]
#[ignore = "an app"]
fn app_that_trusts_nobody() {
    let link = start().status().link;
    assert_eq!(link, LinkState::Untrusted { uid: 65534 });
    say("done");
    pause();
}

#[test]
#[allow(
    unsafe_code,
    reason = "only a bare system call changes one thread's user"
)]
fn a_daemon_of_another_user_is_not_trusted() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = daemon_double::path_in(directory.path());
    rustix::fs::chmod(directory.path(), rustix::fs::Mode::from_raw_mode(0o777)).expect("chmod");
    let (theirs, keep) = (path.clone(), -1_i64);
    let listener = std::thread::spawn(move || {
        // SAFETY: the call takes numbers, and changes this thread only.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, keep, 65534_i64, keep) };
        assert_eq!(done, 0);
        daemon_double::listen(&theirs)
    })
    .join()
    .expect("it listens");
    let mut app = App::start("app_that_trusts_nobody", &path);
    assert_eq!(app.hear(), "done");
    app.finish();
    drop(listener);
}
