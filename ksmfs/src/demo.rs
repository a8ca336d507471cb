//! The main job, shown on this machine's own data.
//!
//! Mounts ksmfs, starts workers that load the same real files and data of their own, lets their equal pages merge,
//! measures from outside what that saves, and has every byte checked after a tenth of the pages were rewritten.

mod data;
mod report;
mod stage;
mod worker;

pub use worker::serve as serve_worker;

use crate::footprint::{self, Footprint};
use report::{Progress, Report};
use stage::{Counter, Stage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long merging may take before the demo goes on with what there is.
const MERGE_TIME: Duration = Duration::from_secs(35);
/// Scans without a further merge after which everything that can be merged is.
const QUIET_SCANS: u64 = 2;

/// What can go wrong in a demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file, process or directory of the demo's own.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// The kernel's accounts could not be read.
    #[error("reading the kernel's figures: {0}")]
    Accounts(#[from] procfs::ProcError),
    /// The daemon ended or did not come up.
    #[error("the daemon did not come up: {0}")]
    Daemon(String),
    /// A worker reported something else than it was asked for.
    #[error("worker {0}: {1}")]
    Worker(u32, String),
    /// Interrupted by a signal.
    #[error("interrupted")]
    Interrupted,
}

/// Size of the demo.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Worker processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=64))]
    workers: u32,
    /// MiB of real files that each worker loads
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=65536))]
    mib: u32,
}

/// Runs the demo and prints what came of it.
///
/// # Errors
/// When any part fails, or any byte is wrong. Nothing stays mounted and no process stays behind.
pub fn run(options: Options) -> Result<(), DemoError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|e| DemoError::Io("signal handler", e))?;
    }
    let check = || match interrupted.load(Ordering::Relaxed) {
        true => Err(DemoError::Interrupted),
        false => Ok(()),
    };

    let files = data::real_files(u64::from(options.mib) << 20);
    let mut stage = Stage::new()?;
    println!("ksmfs is mounted at {}", stage.mount().display());
    let loaded = stage.start_workers(options.workers, &files)?;
    check()?;
    println!(
        "{} workers, each with {} MiB of {} real files of this machine and {} MiB of its own",
        options.workers,
        loaded.shared >> 20,
        files.len(),
        loaded.own >> 20,
    );

    let before = measure(&stage)?;
    let cpu_before = cpu(&stage)?;
    let start = Instant::now();
    stage.write("smart_scan", "0")?;
    stage.write("pages_to_scan", "20000")?;
    stage.write("sleep_millisecs", "5")?;
    stage.write("run", "1")?;
    let took = merge(&stage, &loaded, options.workers, start, &check)?;
    let cpu_used = cpu(&stage)?.saturating_sub(cpu_before);
    let after = measure(&stage)?;
    let counters = stage.counters()?;

    println!("rewriting a tenth of all pages, then checking every byte of all of them");
    check()?;
    stage.ask_all("rewrite")?;
    stage.ask_all("verify")?;
    check()?;
    let report = Report {
        before,
        after,
        counters,
        took,
        cpu_used,
        checked: loaded.total(options.workers),
    };
    report.print();
    stage.end()?;
    println!("every byte was right");
    Ok(())
}

fn measure(stage: &Stage) -> Result<Footprint, DemoError> {
    Ok(footprint::of(&stage.workers(), Some(stage.daemon()))?)
}

/// CPU time of all that merges: the daemon and the workers' agents.
fn cpu(stage: &Stage) -> Result<Duration, DemoError> {
    let mut processes = footprint::agents_of(&stage.workers());
    processes.push(stage.daemon());
    Ok(footprint::cpu_time(&processes)?)
}

/// Waits until nothing merges any more; returns when the last page did.
fn merge(
    stage: &Stage,
    loaded: &stage::Loaded,
    workers: u32,
    start: Instant,
    check: &impl Fn() -> Result<(), DemoError>,
) -> Result<Duration, DemoError> {
    let progress = Progress::new(loaded.mergeable_pages(workers));
    let (mut most, mut last_change) = (0, start.elapsed());
    let mut quiet_from = None;
    while start.elapsed() < MERGE_TIME {
        check()?;
        let sharing = stage.counter(Counter::PagesSharing)?;
        let scans = stage.counter(Counter::FullScans)?;
        if sharing > most {
            (most, last_change) = (sharing, start.elapsed());
            quiet_from = None;
        }
        progress.show(sharing);
        let from = *quiet_from.get_or_insert(scans);
        if most > 0 && scans >= from + QUIET_SCANS {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    progress.finish();
    Ok(last_change)
}
