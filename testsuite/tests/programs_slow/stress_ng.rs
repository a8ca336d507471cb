//! stress-ng (package `stress-ng`): writes patterns and checks them, and does to memory all that Linux has calls for.

use super::daemon;
use std::time::Duration;
use testsuite::daemon::Daemon;
use testsuite::programs::{Background, exec, installed};

/// Rounds before giving up. On a machine with much else to do a round may be too short for a page to be scanned twice.
const ROUNDS: u32 = 16;

/// Runs it for some seconds, and again until more than `wanted` pages were shared at a time. No stressor may fail or
/// find a wrong byte.
fn stress_until(wanted: i64, launcher: &[&str], seconds: u32, stressors: &str) {
    let daemon = daemon();
    let most = (0..ROUNDS)
        .map(|_| stress(&daemon, launcher, seconds, stressors))
        .find(|most| *most > wanted);
    assert!(most.is_some(), "never more than {wanted} pages were shared");
}

/// One round; the most pages that were shared meanwhile.
fn stress(daemon: &Daemon, launcher: &[&str], seconds: u32, stressors: &str) -> i64 {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = exec(daemon);
    command.current_dir(dir.path()).args(launcher);
    command.arg("stress-ng");
    command.args(stressors.split_whitespace());
    command.args(["--verify", "--timeout", &format!("{seconds}s")]);
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).expect("own directory");
    command
        .stderr(file.try_clone().expect("a descriptor"))
        .stdout(file);
    let mut running = Background::start(&mut command);
    let mut most = 0;
    while running.runs() {
        most = most.max(daemon.number("pages_sharing"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = running.0.wait().expect("own child");
    let said = std::fs::read_to_string(&log).expect("its log");
    assert!(output.success(), "{stressors}: {output}\n{said}");
    assert!(!said.contains("fail:"), "{said}");
    most
}

#[test]
fn patterns_in_mergeable_memory_stay_what_they_are() {
    if installed(&["stress-ng"]) {
        stress_until(
            1000,
            &[],
            15,
            "--vm 2 --vm-bytes 64M --vm-madvise mergeable",
        );
    }
}

#[test]
fn every_advice_at_single_pages_thousands_of_times() {
    if installed(&["stress-ng"]) {
        stress_until(0, &[], 15, "--madvise 2");
    }
}

#[test]
fn a_mix_of_memory_stressors_for_a_minute() {
    if !installed(&["stress-ng"]) {
        return;
    }
    let mix = "--vm 1 --vm-bytes 32M --vm-madvise mergeable --mmap 1 --mmap-bytes 16M --mremap 1 --mremap-bytes 8M
        --malloc 1 --malloc-bytes 32M --brk 1 --stack 1 --shm 1 --shm-bytes 8M --mlock 1 --mprotect 1 --munmap 1
        --mincore 1 --fork 1 --vfork 1 --madvise 1 --userfaultfd 1 --userfaultfd-bytes 8M --memfd 1 --memfd-bytes 8M";
    stress_until(1000, &[], 60, mix);
}

/// In the mode that a launcher sets and children inherit.
#[test]
fn all_memory_of_stressors_that_advise_nothing() {
    if !installed(&["stress-ng", "python3"]) {
        return;
    }
    let launcher = ["python3", &super::script("merge_any.py")];
    let stressors = "--malloc 2 --malloc-bytes 32M --qsort 1 --tree 1 --fork 1";
    stress_until(100, &launcher, 15, stressors);
}
