//! Users who may not mount: with a user namespace of their own, or with a word of what is missing.

use super::stage::{Daemon, Scratch};
use super::{KSM, exec_sh, open_copy, refusal, said, stage_in_namespace};
use std::env;
use std::fs;
use std::io::Write;
use std::process::Command;

const NOBODY: &str = "65534";

/// Whether a user can mount here. Says so where not, past the test runner; with `CI` set that is a failure.
fn users_can_mount() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join("fusermount3").is_file()) {
        return true;
    }
    let word = "not installed: fusermount3; run testsuite/install-programs";
    assert!(env::var_os("CI").is_none(), "{word}");
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(std::io::stderr(), "{test}: SKIPPED: {word}");
    false
}

/// The same command of a copy of the program that everybody may run, as somebody without privilege.
fn as_nobody(scratch: &Scratch, command: &Command) -> Command {
    let copy = open_copy(scratch);
    let mut unprivileged = Command::new("setpriv");
    unprivileged.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    unprivileged.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
    unprivileged.arg(copy).args(command.get_args());
    for (name, value) in command.get_envs() {
        unprivileged.env(name, value.unwrap_or_default());
    }
    unprivileged
}

#[test]
fn a_user_sees_the_files_of_roots_daemon_and_stays_who_he_is() {
    let scratch = Scratch::new();
    let _daemon = Daemon::start(&scratch);
    let script = format!("id -u; id -g; cat {KSM}/run; ! (echo 1 > {KSM}/run) 2>/dev/null");
    let socket = scratch.socket();
    let command = exec_sh(&["--socket", socket.to_str().unwrap()], &script);
    let seen = said(&mut as_nobody(&scratch, &command));
    assert_eq!(seen, "65534\n65534\n0\n");
    let run = fs::read_to_string(scratch.mountpoint().join("run"));
    assert_eq!(run.unwrap(), "0\n");
}

/// Devices that every user may open, as udev has them on most machines.
const OPEN_DEVICES: &str = "mount -t tmpfs -o mode=755 none /dev
    mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9\n";

#[test]
fn a_user_who_may_open_the_device_gets_a_daemon_of_his_own() {
    if !users_can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let script = format!("id -u; cd {KSM}; echo 1 > run; cat run; stat -c %u run; stat -fc %T .");
    let command = as_nobody(&scratch, &exec_sh(&["--own"], &script));
    let staged = OPEN_DEVICES.to_owned() + "exec \"$@\"";
    let seen = said(&mut stage_in_namespace(&staged, &command));
    assert_eq!(seen, "65534\n1\n65534\nfuseblk\n");
}

#[test]
fn without_ksm_in_the_kernel_a_user_gets_the_rebuilt_directory_too() {
    if !users_can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let command = as_nobody(
        &scratch,
        &exec_sh(&["--own"], &format!("cat {KSM}/run; ls /sys/kernel/mm")),
    );
    let staged = OPEN_DEVICES.to_owned()
        + "mount -t tmpfs -o mode=755 none /sys/kernel/mm; mkdir /sys/kernel/mm/other; exec \"$@\"";
    let seen = said(&mut stage_in_namespace(&staged, &command));
    assert_eq!(seen, "0\nksm\nother\n");
}

#[test]
fn a_user_who_may_not_open_the_device_is_told_so() {
    let scratch = Scratch::new();
    let command = as_nobody(&scratch, &exec_sh(&["--own"], "echo run"));
    let staged = "mount -t tmpfs -o mode=755 none /dev; mknod -m 600 /dev/fuse c 10 229
        mknod -m 666 /dev/null c 1 3; exec \"$@\"";
    let why = refusal(&mut stage_in_namespace(staged, &command));
    assert!(why.contains("/dev/fuse: "), "{why}");
}

#[test]
fn where_user_namespaces_are_forbidden_the_setting_is_named() {
    let scratch = Scratch::new();
    let _daemon = Daemon::start(&scratch);
    let socket = scratch.socket();
    let command = exec_sh(&["--socket", socket.to_str().unwrap()], "echo run");
    // The limit of a user namespace of the test's own, so that the host keeps its own.
    let mut staged = Command::new("unshare");
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all \"$@\"";
    staged.args(["--user", "--map-root-user", "sh", "-ec", script, "sh"]);
    staged.arg(command.get_program()).args(command.get_args());
    let why = refusal(&mut staged);
    assert!(why.contains("max_user_namespaces is 0"), "{why}");
}
