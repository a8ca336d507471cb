//! `ksmfs exec`: a command sees ksmfs where the kernel's KSM would be, and nothing else changes for it or for others.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod daemons;
mod place;
mod process;
#[path = "../stage/mod.rs"]
mod stage;
mod users;

use stage::{Scratch, program};
use std::path::PathBuf;
use std::process::{Command, Output};

/// Where programs look.
const KSM: &str = "/sys/kernel/mm/ksm";

/// `ksmfs exec`, not to be finished: options, `--` and the command follow. No daemon runs unless the test says so.
fn exec() -> Command {
    let mut command = Command::new(program());
    command
        .arg("exec")
        .env("KSMFS_SOCKET", "/nonexistent/socket");
    command
}

/// `ksmfs exec OPTIONS --no-preload -- sh -c SCRIPT`
fn exec_sh(options: &[&str], script: &str) -> Command {
    let mut command = exec();
    command.args(options);
    command.args(["--no-preload", "--", "sh", "-ec", script]);
    command
}

/// Its standard output, if it succeeds.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its one line of complaint, if this program refuses to run the command.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{command:?}: {output:?}");
    assert_eq!(output.stdout, b"", "the command was run");
    complaint(&output)
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("ksmfs: ")).collect();
    assert!(!lines.is_empty(), "no word of why: {text}");
    lines.join("\n")
}

/// A copy of the program that everybody may run. Made by another process: a descriptor open for writing in this one
/// could be inherited by what another test starts, and a file that is open for writing cannot be run.
fn open_copy(scratch: &Scratch) -> PathBuf {
    let copy = scratch.path("ksmfs");
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(program()).arg(&copy);
    assert!(install.status().unwrap().success());
    copy
}

/// A shell script in a mount namespace of its own, in which a test may change what it likes. `"$@"` is the command.
fn stage_in_namespace(script: &str, command: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-ec", script, "sh"]);
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    outer
}
