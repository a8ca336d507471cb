//! The command: which cases, how often, where the figures go.

use super::cases::{self, Case};
use super::figures::Samples;
use super::latency;
use super::measure::{Plan, bytes};
use super::plots;
use super::report::Report;
use super::side_channels;
use super::sides::{Merger, end_on_signals};
use clap::Parser;
use procfs::Current;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use testsuite::kernel::KernelKsm;

#[derive(Debug, Parser)]
pub struct Options {
    /// Workloads by name or letter: clones (a), scattered (b), clustered (c), unique (d), zeros and pattern (e), files
    /// (f), hot (g), small and large (h), latency, side-channels; (a) to (g) when none is named
    pub workloads: Vec<String>,
    /// Rounds, ours and the kernel's in turn
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// MiB of each process; `small` has half of it, `large` eight times as much
    #[arg(long, default_value_t = 64)]
    pub mib: u64,
    /// Milliseconds for which what is too short to measure is repeated, at least
    #[arg(long, default_value_t = 1000)]
    pub repeat: u64,
    /// Keeps the figures here; those of other workloads in the file stay
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Draws what is in the report into this directory, as SVG
    #[arg(long)]
    pub plots: Option<PathBuf>,
    /// Measures nothing: shows what is in the JSON file
    #[arg(long, requires = "json")]
    pub show: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Measures, writes and prints; the report of everything in the file.
pub fn run(options: &Options, kit: &str) -> io::Result<Report> {
    let mut report = match &options.json {
        Some(file) => Report::load(file)?,
        None => Report::default(),
    };
    if !options.show {
        measure(options, kit, &mut report)?;
    }
    if let Some(directory) = &options.plots {
        plots::draw(&report, directory).map_err(|error| io::Error::other(error.to_string()))?;
    }
    print!("{report}");
    Ok(report)
}

fn measure(options: &Options, kit: &str, report: &mut Report) -> io::Result<()> {
    end_on_signals()?;
    let kernel = if KernelKsm::exists() {
        Some(KernelKsm::take()?)
    } else {
        eprintln!("this kernel has no KSM: ours alone is measured");
        None
    };
    let repeat = Duration::from_millis(options.repeat);
    let cases = chosen(&options.workloads)?;
    let has_word = |name| options.workloads.iter().any(|word| word == name);
    if has_word(latency::NAME) {
        let (mib, rounds) = (options.mib, options.rounds);
        latency::measure(kit, kernel.as_ref(), mib, rounds, repeat, report)?;
    }
    if has_word(side_channels::NAME) {
        side_channels::measure(kit, kernel.as_ref(), options.rounds, report)?;
    }
    for case in cases {
        check_memory(case, options.mib)?;
        let plan = Plan::new(kit, case, options.mib, repeat)?;
        let mut samples = Samples {
            mib: case.mib(options.mib),
            ..Samples::default()
        };
        for round in 1..=options.rounds {
            for merger in [Merger::Kernel, Merger::Ours] {
                if merger == Merger::Kernel && kernel.is_none() {
                    continue;
                }
                eprintln!(
                    "{}, round {round} of {}: {merger:?}",
                    case.name, options.rounds
                );
                let measured = plan.round(kernel.as_ref().filter(|_| merger == Merger::Kernel))?;
                samples
                    .rounds
                    .entry(merger)
                    .or_default()
                    .push(measured.sample);
                samples.curves.insert(merger, measured.curve);
            }
        }
        report.cases.insert(case.name.to_owned(), samples);
        save(options, report)?;
    }
    save(options, report)
}

fn save(options: &Options, report: &Report) -> io::Result<()> {
    options
        .json
        .as_ref()
        .map_or(Ok(()), |file| report.save(file))
}

fn chosen(words: &[String]) -> io::Result<Vec<Case>> {
    if words.is_empty() {
        return Ok(cases::ALL.into_iter().filter(|case| !case.growth).collect());
    }
    let mut chosen = Vec::new();
    for word in words {
        if [latency::NAME, side_channels::NAME].contains(&word.as_str()) {
            continue;
        }
        let named = cases::named(word);
        if named.is_empty() {
            return Err(io::Error::other(format!("no such workload: {word}")));
        }
        chosen.extend(named);
    }
    Ok(chosen)
}

/// Memory that is swapped or reclaimed would measure something else.
fn check_memory(case: Case, mib: u64) -> io::Result<()> {
    let needed = bytes(&case.parts(mib)) as u64;
    let info = procfs::Meminfo::current().map_err(io::Error::other)?;
    let available = info.mem_available.unwrap_or(info.mem_free);
    if needed + needed / 8 > available {
        return Err(io::Error::other(format!(
            "{} takes {} MiB and an eighth more; {} are available",
            case.name,
            needed >> 20,
            available >> 20
        )));
    }
    Ok(())
}
