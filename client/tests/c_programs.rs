//! The C interface, from a program that a C compiler made with the header and either library.

mod daemon_double;

use daemon_double::DaemonDouble;
use ksm_engine::wire::{Figures, ToAgent, ToDaemon};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo puts the libraries of this package: beside this test.
fn libraries() -> PathBuf {
    let this = std::env::current_exe().expect("a path");
    this.parent().expect("a directory").to_owned()
}

fn compile(program: &Path, link: &[&str]) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("cc")
        .args([
            "-std=c99",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-O1",
        ])
        .arg("-I")
        .arg(package.join("include"))
        .arg(package.join("tests/c_program.c"))
        .arg("-L")
        .arg(libraries())
        .args(link)
        .arg("-o")
        .arg(program)
        .output()
        .expect("a C compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cc: {said}");
}

fn run(link: &[&str]) {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("program");
    compile(&program, link);
    let daemon = DaemonDouble::new();
    let mut app = Command::new(&program)
        .arg(daemon.path())
        .env("LD_LIBRARY_PATH", libraries())
        .spawn()
        .expect("the program starts");

    let mut peer = daemon.welcome();
    // Perhaps it has joined before it had any.
    let mut tells = || matches!(peer.receive(), Some(ToDaemon::Register { .. }));
    assert!(tells() || tells(), "the agent tells of the memory");
    let mut caller = daemon.accept();
    assert_eq!(caller.receive(), Some(ToDaemon::Query));
    let figures = Figures {
        rmap_items: 1,
        zero_pages: 2,
        merging_pages: 3,
        profit: -4,
    };
    caller.send(&ToAgent::Figures(figures), &[]);
    while peer.receive().is_some() {}

    let status = app.wait().expect("wait");
    assert!(status.success(), "line {status} of the program failed");
}

#[test]
fn a_c_program_works_with_the_shared_library() {
    run(&["-lksm_client"]);
}

#[test]
fn a_c_program_works_with_the_static_library() {
    run(&["-l:libksm_client.a", "-lpthread", "-ldl", "-lm"]);
}
