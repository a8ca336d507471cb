//! The engine among model processes that do everything at the worst moment.
//!
//! Environment variables: `SIM_SEED` runs one seed only, `SIM_SEEDS` so many, `SIM_STEPS` makes each run so long,
//! `SIM_TRACE` prints every operation, order and answer. A failing run says which of them to set.

#[path = "simulator/counterexamples.rs"]
mod counterexamples;

use ksm_engine::engine::Extras;
use ksm_engine::order::Outcome;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::time::Duration;
use testsuite::sim::{Op, Sights, World, any_op};

/// Slots of an arena: few, so that arenas fill up, empty, and are retired.
const SLOTS: [u32; 3] = [8, 4, 13];
const SEEDS: u64 = 40;
const STEPS: u64 = 3000;
/// Steps between two looks at a world that has calmed down.
const CALM_EVERY: u64 = 400;
/// Steps of the course that a crash comes between.
const COURSE: usize = 300;
/// Scans that are more than enough to move out of all arenas that are hardly used.
const LONG_CALM: u64 = 50;

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
    )
}

/// Says how to see a failure again.
struct Replay {
    seed: u64,
    step: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: SIM_SEED={} SIM_STEPS={}", self.seed, self.step + 1);
        }
    }
}

fn operations(seed: u64) -> impl Iterator<Item = Op> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = any_op();
    std::iter::repeat_with(move || {
        let tree = strategy.new_tree(&mut runner);
        tree.expect("no operation is ever rejected").current()
    })
}

/// Every other world does more than the kernel.
fn extras(seed: u64) -> Extras {
    Extras {
        refile_percent: if seed.is_multiple_of(2) { 0 } else { 40 },
        meet_phases: seed % 4 > 1,
        huge_pages_as_ksmd: seed % 8 > 3,
        dry_run: false,
    }
}

fn run_seed(seed: u64, steps: u64) -> World {
    let trace = variable("SIM_TRACE").is_some();
    let slots = SLOTS.iter().cycle().nth(usize::from(seed.to_le_bytes()[0]));
    let mut world = World::new(*slots.expect("a cycle has no end"));
    world.set_extras(extras(seed));
    if trace {
        world.trace();
    }
    let mut replay = Replay { seed, step: 0 };
    for (step, op) in (0..steps).zip(operations(seed)) {
        replay.step = step;
        if trace {
            eprintln!("{step}: {op:?}");
        }
        world.play(&op);
        world.check();
        if step % CALM_EVERY == CALM_EVERY - 1 {
            world.calm_down();
            world.check();
            world.check_settled();
        }
    }
    world.calm_down();
    // Longer than it is waited for those who may be mapped to an arena that was taken over.
    world.wait(Duration::from_secs(11));
    world.scan(LONG_CALM);
    world.check();
    world.check_settled();
    world.check_reclaimed();
    world
}

/// A simulation that never sees a thing says nothing about it: all kinds of orders and outcomes have to come up.
#[test]
fn nothing_goes_wrong_in_random_worlds() {
    let steps = variable("SIM_STEPS").unwrap_or(STEPS);
    if let Some(seed) = variable("SIM_SEED") {
        run_seed(seed, steps);
        return;
    }
    let mut seen = Sights::default();
    for seed in 0..variable("SIM_SEEDS").unwrap_or(SEEDS) {
        seen.add(&run_seed(seed, steps));
    }
    println!("{seen:?}");
    let count = |kind, outcome| seen.pages.get(&(kind, outcome)).copied().unwrap_or(0);
    for kind in ["visit", "donate", "map", "zero", "unmerge", "remap"] {
        assert!(count(kind, Outcome::Done) > 100, "{kind}");
    }
    for outcome in [
        Outcome::Changed,
        Outcome::Pinned,
        Outcome::Gone,
        Outcome::Unsuitable,
        Outcome::NoMaps,
        Outcome::Unsure,
        Outcome::Busy,
        Outcome::Claimed,
        Outcome::Failed,
    ] {
        assert!(count("map", outcome) > 0, "{outcome:?}");
    }
    assert!(seen.cut_off > 10 && seen.released > 50 && seen.adopted > 50);
}

/// What crashes: the daemon, an agent, an agent that has done a part of its order and told nobody.
fn crashes() -> Vec<Vec<Op>> {
    let dies = |process| Op::AgentDies { process };
    let in_part = |process, willing| Op::ObeyInPart {
        process,
        willing,
        refusal: Outcome::Failed,
    };
    vec![
        vec![Op::DaemonDies],
        vec![dies(0)],
        vec![in_part(0, 2), dies(0)],
        vec![in_part(1, 1), dies(1)],
        vec![in_part(2, 3), Op::DaemonDies],
    ]
}

/// The same course again and again, each time with a crash after another step.
#[test]
fn a_crash_between_any_two_steps_costs_nothing() {
    let seed = variable("SIM_SEED").unwrap_or(5);
    let course: Vec<Op> = operations(seed).take(COURSE).collect();
    for crash in crashes() {
        for (after, slots) in (0..COURSE).zip(SLOTS.iter().cycle()) {
            let mut world = World::new(*slots);
            world.set_extras(extras(seed));
            for (step, op) in course.iter().enumerate() {
                world.play(op);
                if step == after {
                    crash.iter().for_each(|op| world.play(op));
                }
                world.check();
            }
            world.calm_down();
            world.check();
            world.check_settled();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// As above, with lists that proptest can shrink.
    #[test]
    fn nothing_goes_wrong_in_short_worlds(ops in prop::collection::vec(any_op(), 1..300)) {
        let mut world = World::new(SLOTS[ops.len() % SLOTS.len()]);
        for op in &ops {
            world.play(op);
            world.check();
        }
        world.calm_down();
        world.check();
        world.check_settled();
    }
}
