//! How long an app's own accesses take while its pages are merged all the time: a write of what is there already takes a
//! page out of the merge, and the next scan puts it back.

use super::cases::{Apps, named};
use super::measure::{Plan, converge};
use super::report::Report;
use super::sides::Side;
use std::fmt;
use std::io;
use std::time::Duration;
use testsuite::kernel::KernelKsm;

pub const NAME: &str = "latency";
pub const PARTS: [&str; 5] = ["50", "99", "99.9", "99.99", "100"];
pub const WHO: [&str; 3] = ["nobody", "kernel", "ours"];

/// Nanoseconds of reads, then of writes, in the order of [`PARTS`].
pub type Percentiles = Vec<f64>;

/// Measures each in turn, `rounds` times, for four times `repeat`.
pub fn measure(
    kit: &str,
    kernel: Option<&KernelKsm>,
    mib: u64,
    rounds: usize,
    repeat: Duration,
    report: &mut Report,
) -> io::Result<()> {
    let case = named("clones")[0];
    let plan = Plan::new(kit, case, mib, repeat)?;
    report.latency.clear();
    for round in 1..=rounds {
        for who in WHO {
            let side = match (who, kernel) {
                ("nobody", _) => None,
                ("kernel", None) => continue,
                ("kernel", kernel) => Some(Side::start(kernel, kit)?),
                _ => Some(Side::start(None, kit)?),
            };
            eprintln!("{NAME}, round {round} of {rounds}: {who}");
            let mut apps = Apps::start(kit, side.as_ref(), &plan.parts)?;
            if let Some(side) = &side {
                converge(side, plan.expected)?;
            }
            let answer = apps.0[0].ask(&format!("access {}", repeat.as_millis() * 4));
            let numbers = answer.split_whitespace().map(str::parse);
            let percentiles: Percentiles = numbers
                .collect::<Result<_, _>>()
                .map_err(io::Error::other)?;
            report
                .latency
                .entry(who.to_owned())
                .or_default()
                .push(percentiles);
            if let Some(side) = side {
                side.set("run", "2")?;
                side.set("run", "0")?;
            }
            apps.ask_all("verify");
        }
    }
    Ok(())
}

/// Medians of all rounds, place by place.
pub fn medians(rounds: &[Percentiles]) -> Percentiles {
    let places = rounds.iter().map(Vec::len).min().unwrap_or(0);
    (0..places)
        .filter_map(|place| {
            super::figures::median(rounds.iter().map(|round| round[place]).collect())
        })
        .collect()
}

/// The table.
pub fn write(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(rounds) = report.latency.values().next().map(Vec::len) else {
        return Ok(());
    };
    writeln!(
        f,
        "**Latency**: an app's accesses to pages of `clones`, one each 10 µs; ns, medians of {rounds}\n"
    )?;
    let heads = PARTS.map(|part| format!("{part} %")).join(" | ");
    writeln!(
        f,
        "| | merged by | {heads} |\n|---|---|---|---|---|---|---|"
    )?;
    for (kind, name) in ["read", "write"].into_iter().enumerate() {
        for who in WHO {
            let Some(rounds) = report.latency.get(who) else {
                continue;
            };
            let medians = medians(rounds);
            let numbers: Vec<String> = medians
                .iter()
                .skip(kind * PARTS.len())
                .take(PARTS.len())
                .map(|ns| format!("{ns:.0}"))
                .collect();
            writeln!(f, "| {name} | {who} | {} |", numbers.join(" | "))?;
        }
    }
    writeln!(f)
}
