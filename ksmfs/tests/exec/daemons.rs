//! Which daemon the command sees, and how long a daemon of its own lives.

use super::stage::{Daemon, Scratch, is_live, wait_for};
use super::{KSM, exec_sh, refusal, said};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A command with a daemon of its own that runs until its input ends, and where that daemon listens.
fn waiting_command(script: &str) -> (Child, PathBuf) {
    let mut command = exec_sh(&["--own"], &format!("echo $KSMFS_SOCKET; {script}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    (child, line.trim().into())
}

fn wait_for_end_at(socket: &Path) {
    wait_for("the daemon to end", || !socket.exists());
}

#[test]
fn a_running_daemon_is_used_and_outlives_the_command() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::start(&scratch);
    let socket = scratch.socket();
    let script = format!("echo 77 > {KSM}/pages_to_scan; echo $KSMFS_SOCKET");
    let named = said(&mut exec_sh(
        &["--socket", socket.to_str().unwrap()],
        &script,
    ));
    assert_eq!(named.trim(), socket.to_str().unwrap());
    let value = |file: &str| fs::read_to_string(scratch.mountpoint().join(file)).unwrap();
    assert_eq!(value("pages_to_scan"), "77\n");
    // By the rule that apps follow, too.
    let script = format!("cat {KSM}/pages_to_scan; echo 78 > {KSM}/pages_to_scan");
    let found = said(exec_sh(&[], &script).env("KSMFS_SOCKET", &socket));
    assert_eq!(
        (found.as_str(), value("pages_to_scan").as_str()),
        ("77\n", "78\n")
    );
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_daemon_of_its_own_has_the_defaults_or_what_it_is_given() {
    let show = format!("cd {KSM}; cat run pages_to_scan");
    assert_eq!(said(&mut exec_sh(&["--own"], &show)), "0\n100\n");
    assert_eq!(said(&mut exec_sh(&[], &show)), "0\n100\n");
    let preset = ["--run", "1", "--set", "pages_to_scan=55"];
    assert_eq!(said(&mut exec_sh(&preset, &show)), "1\n55\n");
    // A preset is for a daemon of its own even if another one runs.
    let scratch = Scratch::new();
    let _daemon = Daemon::start(&scratch);
    let mut beside = exec_sh(&["--set", "pages_to_scan=56"], &show);
    assert_eq!(
        said(beside.env("KSMFS_SOCKET", scratch.socket())),
        "0\n56\n"
    );
    let kept = fs::read_to_string(scratch.mountpoint().join("pages_to_scan"));
    assert_eq!(kept.unwrap(), "100\n");
    let why = refusal(&mut exec_sh(&["--set", "max_page_sharing=1"], "echo run"));
    assert!(
        why.contains("max_page_sharing does not take \"1\""),
        "{why}"
    );
}

#[test]
fn a_daemon_of_its_own_ends_with_the_command() {
    let (mut child, socket) = waiting_command("cat");
    assert!(is_live(&socket));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    wait_for_end_at(&socket);

    let (mut child, socket) = waiting_command("cat");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for_end_at(&socket);
}

#[test]
fn a_daemon_of_its_own_stays_for_what_the_command_left_behind() {
    // The command goes, a child in a session of its own remains and can still use the files.
    let behind = format!("setsid sh -c 'read l; echo 99 > {KSM}/pages_to_scan; read l' <&3 &");
    let (mut child, socket) = waiting_command(&format!("exec 3<&0; {behind}"));
    // Waiting would close the input.
    let mut input = child.stdin.take().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(is_live(&socket));
    input.write_all(b"write\n").unwrap();
    assert!(is_live(&socket));
    drop(input);
    wait_for_end_at(&socket);
}

#[test]
fn within_exec_the_same_daemon_is_used_unless_another_one_is_asked_for() {
    let program = super::program();
    let ksmfs = program.to_str().unwrap();
    let inner = format!("{ksmfs} exec --no-preload -- sh -c 'echo 66 > {KSM}/pages_to_scan'");
    let own = format!("{ksmfs} exec --no-preload --own -- cat {KSM}/pages_to_scan");
    let outer = format!("{inner}; cat {KSM}/pages_to_scan; {own}; cat {KSM}/pages_to_scan");
    assert_eq!(said(&mut exec_sh(&["--own"], &outer)), "66\n100\n66\n");
}

#[test]
fn within_exec_a_new_daemon_takes_the_place_of_a_killed_one() {
    let program = super::program();
    let ksmfs = program.to_str().unwrap();
    let scratch = Scratch::new();
    let mut daemon = Daemon::start(&scratch);
    let inner = format!("{ksmfs} exec --no-preload --own -- cat {KSM}/run");
    let script = format!("read line; cat {KSM}/run && exit 1; {inner}");
    let mut command = exec_sh(&[], &script);
    command.env("KSMFS_SOCKET", scratch.socket());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let run_by = |name| fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() == name;
    wait_for("the command to run", || run_by("sh\n"));
    daemon.signal(rustix::process::Signal::KILL);
    daemon.wait();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n");
}

#[test]
fn a_socket_without_daemon_is_refused_if_it_was_asked_for() {
    let why = refusal(&mut exec_sh(&["--socket", "/nonexistent/s"], "echo run"));
    assert!(
        why.contains("/nonexistent/s") && why.contains("no daemon"),
        "{why}"
    );
}

#[test]
fn a_daemon_whose_mount_is_nowhere_to_be_seen_is_refused() {
    let scratch = Scratch::new();
    let _daemon = Daemon::start(&scratch);
    let hidden = format!(
        "mount -t tmpfs none {}; exec \"$@\"",
        scratch.mountpoint().display()
    );
    let socket = scratch.socket();
    let command = exec_sh(&["--socket", socket.to_str().unwrap()], "echo run");
    let why = refusal(&mut super::stage_in_namespace(&hidden, &command));
    assert!(why.contains("cannot be seen"), "{why}");
}

#[test]
fn another_users_daemon_is_refused() {
    let scratch = Scratch::new();
    let socket = scratch.path("foreign");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&socket).unwrap()).unwrap();
    let _listener = std::thread::spawn(move || {
        // Credentials of a thread, not of the process: `listen` is when the kernel takes them down.
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        listener
    })
    .join()
    .unwrap();
    let mut command = exec_sh(&["--socket", socket.to_str().unwrap()], "echo run");
    let why = refusal(&mut command);
    assert!(why.contains("65534"), "{why}");
}
