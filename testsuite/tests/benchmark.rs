//! The benchmark goes on working: every workload at a tiny size, each figure there, the kernel's knobs as before. How
//! fast anything is does not matter here.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../benches/against_kernel/main.rs"]
#[allow(dead_code, reason = "its own main is not called")]
mod against_kernel;

use against_kernel::cases::{self, Case};
use against_kernel::command::{Options, run};
use against_kernel::figures;
use against_kernel::report::Report;
use against_kernel::side_channels::mann_whitney;
use against_kernel::sides::Merger;
use std::process::{Command, Stdio};
use testsuite::kernel::KernelKsm;
use testsuite::wait::until_true;

const KIT: &str = env!("CARGO_BIN_EXE_kit");

/// The tests compare the knobs before and after, so they go one at a time, in processes of their own, too.
fn alone() -> std::fs::File {
    let lock = std::fs::File::create(std::env::temp_dir().join("benchmark-test.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    lock
}

fn has_kernel_ksm() -> bool {
    let exists = KernelKsm::exists();
    if !exists {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "no KSM in this kernel: nothing was compared");
        println!("NOT COMPARED: this kernel has no KSM");
    }
    exists
}

fn tiny(workloads: &[&str], json: std::path::PathBuf) -> Options {
    Options {
        workloads: workloads.iter().map(|word| (*word).to_owned()).collect(),
        rounds: 1,
        mib: 1,
        repeat: 20,
        plots: Some(json.with_file_name("plots")),
        json: Some(json),
        show: false,
        bench: false,
    }
}

fn expected_figures(case: Case, merger: Merger) -> Vec<&'static str> {
    use figures::*;
    let mut keys = vec![CONVERGE, CONVERGE_TASKS, SAVED, BOOKS];
    if case.hot {
        keys.push(THROUGHPUT);
    } else {
        keys.push(CONVERGE_CPU);
    }
    if !case.hot && !case.growth {
        keys.extend([RESCAN, RESCAN_TIME, RESCAN_SMART]);
    }
    if case.name != "unique" {
        keys.push(UNMERGE);
    }
    if !["unique", "files"].contains(&case.name) {
        keys.push(WRITE);
    }
    if merger == Merger::Ours {
        keys.extend([HELD_MOST, HELD_LONGEST]);
    }
    keys
}

#[test]
fn every_workload_gives_every_figure_and_leaves_the_kernels_knobs_alone() {
    let mergers = if has_kernel_ksm() {
        vec![Merger::Ours, Merger::Kernel]
    } else {
        vec![Merger::Ours]
    };
    let _alone = alone();
    let before = KernelKsm::knobs().ok();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    let words = [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h",
        "latency",
        "side-channels",
    ];
    run(&tiny(&words, file.clone()), KIT).unwrap();
    let report = Report::load(&file).unwrap();
    for case in cases::ALL {
        let samples = &report.cases[case.name];
        for merger in &mergers {
            for key in expected_figures(case, *merger) {
                let value = samples.median(*merger, key);
                assert!(
                    value.is_some_and(f64::is_finite),
                    "{} {merger:?} {key}: {value:?}",
                    case.name
                );
            }
            let converged = samples.curves[merger].last().unwrap().1;
            assert!(converged >= 0.9999, "{}: {converged}", case.name);
        }
        assert!(report.to_string().contains(case.title));
    }
    for who in report.latency.values() {
        assert!(who[0].len() == 10 && who[0].iter().all(|ns| ns.is_finite()));
    }
    assert_eq!(report.latency.len(), mergers.len() + 1);
    assert_eq!(report.side_channels.len(), 2 * (mergers.len() + 1));
    if mergers.len() == 2 {
        let plots = ["ratios", "clones", "files", "latency-read", "latency-write"];
        for plot in plots {
            let file = directory
                .path()
                .join("plots")
                .join(plot)
                .with_extension("svg");
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.contains("kernel") && text.trim_end().ends_with("</svg>"));
        }
    }
    assert_eq!(before, KernelKsm::knobs().ok());
}

#[test]
fn knobs_are_restored_when_the_borrower_is_killed() {
    if !has_kernel_ksm() {
        return;
    }
    if std::env::var_os("BORROW_KERNEL_KSM").is_some() {
        let ksm = KernelKsm::take().unwrap();
        ksm.write("sleep_millisecs", "12345").unwrap();
        ksm.write("run", "1").unwrap();
        println!("borrowed");
        loop {
            std::thread::park();
        }
    }
    let _alone = alone();
    // Whoever has it now gives it back first.
    drop(KernelKsm::take().unwrap());
    let before = KernelKsm::knobs().unwrap();
    let mut borrower = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "knobs_are_restored_when_the_borrower_is_killed"])
        .arg("--nocapture")
        .env("BORROW_KERNEL_KSM", "1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let knobs = || KernelKsm::knobs().unwrap();
    until_true("the knobs to be changed", || knobs() != before);
    borrower.kill().unwrap();
    borrower.wait().unwrap();
    until_true("the knobs to be restored", || knobs() == before);
}

#[test]
fn times_that_differ_are_told_from_times_that_do_not() {
    let even: Vec<f64> = (0..1000).map(|n| f64::from(n) * 2.0).collect();
    let odd: Vec<f64> = (0..1000).map(|n| f64::from(n) * 2.0 + 1.0).collect();
    let (longer, p) = mann_whitney(&even, &odd);
    assert!((longer - 0.5).abs() < 0.001 && p > 0.9, "{longer} {p}");
    let shifted: Vec<f64> = even.iter().map(|x| x + 200.0).collect();
    let (longer, p) = mann_whitney(&shifted, &odd);
    assert!(longer > 0.58 && p < 1e-6, "{longer} {p}");
    assert_eq!(mann_whitney(&[1.0; 50], &[1.0; 50]), (0.5, 1.0));
    // By hand: U = 8 of 9, no ties, z = 3.5 / sqrt(5.25).
    let (longer, p) = mann_whitney(&[3.0, 5.0, 6.0], &[1.0, 2.0, 4.0]);
    assert!((longer - 8.0 / 9.0).abs() < 1e-9, "{longer}");
    assert!((p - 0.1266).abs() < 1e-3, "{p}");
}
