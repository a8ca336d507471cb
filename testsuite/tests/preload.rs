//! Unmodified C programs with the library preloaded, each in a file of its own beside this one.
//!
//! The program checks what it sees and says so by its exit status; here it is compiled, given a daemon of its own that
//! scans as fast as it can, and run. What has an answer of the kernel's to compare with runs without the library too.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use testsuite::daemon::Daemon;
use testsuite::programs::preload_library;
use testsuite::wait::until_true;

struct Stage {
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_kit"));
        daemon.scan_fast();
        let directory = tempfile::tempdir().expect("a directory");
        Self { daemon, directory }
    }

    /// Compiles `preload/NAME.c`.
    fn program(&self, name: &str) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload");
        let program = self.directory.path().join(name);
        let output = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .arg(&program)
            .arg(source.join(name).with_extension("c"))
            .output()
            .expect("a C compiler");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cc: {said}");
        program
    }

    fn preload(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_PRELOAD", preload_library())
            .env("KSMFS_SOCKET", self.daemon.socket());
        command
    }
}

fn succeeded(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {err}{out}", output.status);
    out
}

/// Runs a program with the library to its good end.
fn run(name: &str, arguments: &[&str]) -> String {
    let stage = Stage::new();
    let mut command = stage.preload(stage.program(name));
    succeeded(&command.args(arguments).output().expect("it starts"))
}

#[test]
fn what_the_c_library_maps_by_itself_merges_too() {
    run("thread_heap", &[]);
}

#[test]
fn threads_allocate_and_free_while_everything_merges() {
    let said = run("churn", &["10"]);
    assert!(said.contains("ksm_merge_any: yes"), "{said}");
}

#[test]
fn a_block_that_is_freed_and_allocated_anew_while_it_is_merged_keeps_its_bytes() {
    let said = run("freed_blocks", &["20"]);
    assert!(said.contains("rounds"), "{said}");
}

#[test]
fn merged_memory_behaves_as_any_other() {
    run("merged_memory", &[]);
}

#[test]
fn what_is_written_to_a_page_in_a_pipe_is_in_the_pipe() {
    run("pipes", &[]);
}

#[test]
fn files_about_processes_are_current_in_descriptors_that_are_kept() {
    run("stat_files", &[]);
}

#[test]
fn calls_that_few_programs_make_mean_what_they_mean() {
    run("rare_calls", &[]);
}

#[test]
fn an_allocator_that_is_locked_around_forks_is_not_waited_for() {
    run("own_allocator", &[]);
}

#[test]
fn memory_whose_writes_are_tracked_is_moved_whole_and_becomes_huge() {
    run("tracked_memory", &["moved"]);
    run("tracked_memory", &["collapsed"]);
    run("tracked_memory", &["sandboxed"]);
}

#[test]
fn calls_that_start_and_end_merging_answer_as_the_kernel_does() {
    let stage = Stage::new();
    let program = stage.program("answers");
    let ours = succeeded(&stage.preload(&program).output().expect("it starts"));
    let kernels = succeeded(&Command::new(&program).output().expect("it starts"));
    assert!(kernels.lines().count() > 80, "{kernels}");
    assert_eq!(ours, kernels);
}

#[test]
fn what_programs_do_to_themselves_and_their_children_goes_with_merging() {
    let stage = Stage::new();
    let program = stage.program("surroundings");
    for part in [
        "descriptors",
        "another_user",
        "another_root",
        "namespaces",
        "sandbox",
        "signals",
        "forks",
        "own_userfaultfd",
        "stopped",
        "everything",
        "vforks",
        "probes",
        "early_handlers",
        "many_forks",
    ] {
        eprintln!("{part}");
        succeeded(
            &stage
                .preload(&program)
                .arg(part)
                .output()
                .expect("it starts"),
        );
    }
}

/// A service manager's `MemoryKSM=`: the program is started with the kernel's flag set.
#[test]
fn the_kernels_own_flag_is_taken_over_and_cleared() {
    let stage = Stage::new();
    let program = stage.program("surroundings");
    let mut plain = Command::new(program);
    plain
        .arg("kernels_flag")
        .env("LIBRARY", preload_library())
        .env("KSMFS_SOCKET", stage.daemon.socket());
    let said = succeeded(&plain.output().expect("it starts"));
    eprint!("{said}");
}

#[test]
fn stopped_processes_are_merged_and_unmerged() {
    let stage = Stage::new();
    let program = stage.program("stopped");
    stage.daemon.write("run", "0");
    let mut holders = [(); 2].map(|()| stage.preload(&program).spawn().expect("it starts"));
    let is_stopped = |child: &Child| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
        stat.is_ok_and(|stat| stat.contains(") T "))
    };
    until_true("both to stop", || holders.iter().all(is_stopped));
    stage.daemon.write("run", "1");
    until_true("their pages to merge", || {
        stage.daemon.number("pages_sharing") == 64
    });
    stage.daemon.write("run", "2");
    assert_eq!(stage.daemon.number("pages_sharing"), 0);
    assert!(holders.iter().all(is_stopped));
    for holder in &mut holders {
        let pid = rustix::process::Pid::from_child(holder);
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("it is there");
        assert!(holder.wait().expect("own child").success());
    }
}
