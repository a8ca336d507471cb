//! The mounted directory against the kernel's own: the same calls on both, and whatever a program can see compared
//! call by call.
//!
//! `DIFFERENTIAL_CASES` sets how many sequences are tried, `DIFFERENTIAL_SEED` which. What cannot be the same is
//! listed in `unavoidable.rs`; every other difference fails, shrunk to the shortest sequence that shows
//! it, and is kept as a named case in `found.rs`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod found;
mod generate;
mod home;
mod kernel;
mod operation;
mod pair;
mod script;
mod side;
#[path = "../stage/mod.rs"]
mod stage;
mod sys;
mod unavoidable;

use kernel::{DIRECTORY, KernelKsm};
use pair::Pair;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use stage::Mounted;
use std::path::Path;
use unavoidable::UNAVOIDABLE;

/// Some seconds' worth.
const CASES: u32 = 2_000;

/// Both directories, and what puts them back.
struct Comparison {
    pair: Pair,
    _mounted: Mounted,
    // Last: restores the kernel's files after everything else has let go of them.
    _kernel: KernelKsm,
}

impl Comparison {
    /// `None` where there is nothing to compare with.
    fn new() -> Option<Self> {
        let kernel = KernelKsm::take()?;
        let mounted = Mounted::new();
        let outside = mounted.scratch.path("outside");
        std::fs::write(&outside, "elsewhere").unwrap();
        let ours = mounted.scratch.mountpoint();
        Some(Self {
            pair: Pair::new(Path::new(DIRECTORY), &ours, &outside),
            _mounted: mounted,
            _kernel: kernel,
        })
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

#[test]
fn random_sequences_see_no_difference_that_is_not_listed() {
    let Some(comparison) = Comparison::new() else {
        return;
    };
    let cases = from_environment("DIFFERENTIAL_CASES").map_or(CASES, |n| n.try_into().unwrap());
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(
        &from_environment("DIFFERENTIAL_SEED")
            .unwrap_or(0)
            .to_le_bytes(),
    );
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 5_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let outcome = TestRunner::new_with_rng(config, rng).run(&generate::steps(), |steps| {
        let compared = comparison.pair.run(&steps);
        compared
            .map(drop)
            .map_err(|difference| TestCaseError::fail(difference.to_string()))
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(difference, steps)) => {
            let steps: Vec<_> = steps.iter().map(|step| format!("{step:?}")).collect();
            panic!("{difference}\n\nin\n{}", steps.join("\n"));
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn differences_that_were_found_and_mended_stay_so() {
    let Some(comparison) = Comparison::new() else {
        return;
    };
    for (name, steps) in found::all() {
        if let Err(difference) = comparison.pair.run(&steps) {
            panic!("{name}: {difference}");
        }
    }
}

#[test]
fn every_listed_difference_is_real_and_documented() {
    const SEMANTICS: &str = include_str!("../../../docs/SEMANTICS.md");
    let Some(comparison) = Comparison::new() else {
        return;
    };
    for listed in &UNAVOIDABLE {
        let heading = format!("### {}\n", listed.name);
        assert!(
            SEMANTICS.contains(&heading),
            "docs/SEMANTICS.md does not name {}",
            listed.name
        );
        let seen = match comparison.pair.run(&(listed.example)()) {
            Ok(seen) => seen,
            Err(difference) => panic!("{}: {difference}", listed.name),
        };
        let seen: Vec<_> = seen.iter().map(|seen| seen.name).collect();
        assert!(
            seen.contains(&listed.name),
            "{} shows no longer: {seen:?}",
            listed.name
        );
    }
}
