//! The figures as tables, beside what they are meant to come to.

use super::cases;
use super::figures::{self, Samples};
use super::latency;
use super::report::Report;
use super::side_channels;
use super::sides::Merger;
use std::fmt::{self, Display};

const HEAD: &str = "| | ours | kernel | ours / kernel | target |\n|---|---|---|---|---|";

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in cases::ALL {
            let Some(samples) = self.cases.get(case.name) else {
                continue;
            };
            let rounds = samples.rounds.values().map(Vec::len).max().unwrap_or(0);
            writeln!(
                f,
                "**{}**, {} MiB each; medians of {rounds}\n\n{HEAD}",
                case.title, samples.mib
            )?;
            for figure in figures::ALL {
                row(f, case.name, figure, samples)?;
            }
            writeln!(f)?;
        }
        growth(f, self)?;
        latency::write(f, self)?;
        side_channels::write(f, self)
    }
}

fn row(
    f: &mut fmt::Formatter<'_>,
    case: &str,
    figure: figures::Figure,
    samples: &Samples,
) -> fmt::Result {
    let ours = samples.median(Merger::Ours, figure.key);
    let kernel = samples.median(Merger::Kernel, figure.key);
    if ours.is_none() && kernel.is_none() {
        return Ok(());
    }
    let ratio = ours.zip(kernel).map(|(ours, kernel)| ours / kernel);
    let target =
        ours.zip(figures::target(case, figure.key))
            .map_or(String::new(), |(ours, target)| {
                let (text, met) = target.judge(ours, kernel);
                let verdict = match met {
                    Some(true) => ", met",
                    Some(false) => ", missed",
                    None => "",
                };
                format!("{text}{verdict}")
            });
    writeln!(
        f,
        "| {} | {} | {} | {} | {target} |",
        figure.title,
        number(ours),
        number(kernel),
        number(ratio)
    )
}

/// What a page costs among many, of what it costs among few.
fn growth(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let (Some(small), Some(large)) = (report.cases.get("small"), report.cases.get("large")) else {
        return Ok(());
    };
    writeln!(
        f,
        "**Growth**: cost per page at {} MiB each, of that at {} MiB each\n\n| | ours | kernel |\n|---|---|---|",
        large.mib, small.mib
    )?;
    #[expect(clippy::cast_precision_loss, reason = "mebibytes")]
    let times = large.mib as f64 / small.mib.max(1) as f64;
    for key in [figures::CONVERGE, figures::CONVERGE_CPU] {
        let growth = |merger| {
            let (small, large) = (small.median(merger, key)?, large.median(merger, key)?);
            Some(large / small / times)
        };
        let title = figures::ALL.iter().find(|figure| figure.key == key);
        writeln!(
            f,
            "| {} | {} | {} |",
            title.map_or(key, |figure| figure.title),
            number(growth(Merger::Ours)),
            number(growth(Merger::Kernel))
        )?;
    }
    writeln!(f)
}

/// Three digits that mean something.
pub fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}
