//! The command's process: exit status, signals, process id, children, environment.

use super::stage::{Scratch, wait_for};
use super::{exec, exec_sh, open_copy, refusal, said};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

#[test]
fn the_exit_status_is_the_commands() {
    for code in [0, 1, 7, 125, 255] {
        let status = exec_sh(&[], &format!("exit {code}")).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

#[test]
fn a_command_that_cannot_be_run_has_the_codes_of_env_and_nohup() {
    let code = |program: &str| {
        let mut command = exec();
        command.args(["--no-preload", "--", program]);
        let output = command.output().unwrap();
        (output.status.code(), super::complaint(&output))
    };
    let (missing, word) = code("/nonexistent/program");
    assert_eq!(missing, Some(127), "{word}");
    let (no_program, word) = code("/etc/passwd");
    assert_eq!(no_program, Some(126), "{word}");
    assert!(word.contains("/etc/passwd"), "{word}");
}

#[test]
fn signals_reach_the_command_which_has_the_process_id_of_exec() {
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut child = exec_sh(&[], "exec sleep 1000").spawn().unwrap();
        wait_for("the command to run", || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", child.id()));
            comm.is_ok_and(|comm| comm == "sleep\n")
        });
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
    }
    let child = exec_sh(&[], "echo $$").stdout(Stdio::piped()).spawn();
    let child = child.unwrap();
    let id = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        id.to_string()
    );
}

#[test]
fn the_command_has_no_child_and_no_descriptor_that_it_knows_nothing_of() {
    let children = "read c < /proc/$$/task/$$/children || true; echo \"[$c]\"";
    assert_eq!(said(&mut exec_sh(&["--own"], children)), "[]\n");
    let list = ["ls", "/proc/self/fd"];
    let plain = said(Command::new(list[0]).arg(list[1]));
    let open = said(exec().args(["--own", "--no-preload"]).args(list));
    assert_eq!(open, plain);
}

#[test]
fn arguments_after_the_command_are_the_commands() {
    let words = said(exec().args(["--no-preload", "echo", "--own", "--help", "-x"]));
    assert_eq!(words, "--own --help -x\n");
}

#[test]
fn the_library_is_preloaded_before_what_is_preloaded_already() {
    let library = fs::canonicalize("/lib/x86_64-linux-gnu/libm.so.6").unwrap();
    let mut command = exec();
    command.arg("--preload").arg(&library);
    command.args(["sh", "-c", "echo $LD_PRELOAD"]);
    assert_eq!(said(&mut command), format!("{}\n", library.display()));
    command.env("LD_PRELOAD", "/lib/x86_64-linux-gnu/libdl.so.2");
    let both = format!("{}:/lib/x86_64-linux-gnu/libdl.so.2\n", library.display());
    assert_eq!(said(&mut command), both);
    let none = said(&mut exec_sh(&[], "echo \"[$LD_PRELOAD]\""));
    assert_eq!(none, "[]\n");
}

#[test]
fn a_library_that_is_not_there_is_named_and_the_command_is_not_run() {
    let why = refusal(exec().args(["--preload", "/nonexistent.so", "echo", "run"]));
    assert!(
        why.contains("/nonexistent.so") && why.contains("--no-preload"),
        "{why}"
    );
    let why = refusal(
        exec()
            .env("KSMFS_PRELOAD", "/gone.so")
            .args(["echo", "run"]),
    );
    assert!(why.contains("/gone.so"), "{why}");
    // A copy of the program far from any library.
    let scratch = Scratch::new();
    let why = refusal(Command::new(open_copy(&scratch)).args(["exec", "echo", "run"]));
    assert!(why.contains("cargo build --release"), "{why}");
}
