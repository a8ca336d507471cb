//! One round of one case with one merger.

use super::cases::{Apps, Case};
use super::figures::{self, Sample};
use super::meters;
use super::sides::{Side, pause, until};
use std::io;
use std::time::{Duration, Instant};
use testsuite::content::PAGE_SIZE;
use testsuite::kernel::KernelKsm;
use testsuite::workload::{Expected, Part, Workload, expected};

/// Part of the expected pages that must be shared.
const CONVERGED: f64 = 0.9999;
const LIMIT: u64 = 256;
/// Scans of memory in which nothing can converge.
const SCANS_OF_UNIQUE: u64 = 3;
/// `smart_scan` skips a page for eight scans at most, once it has been old for some more.
const SMART_CYCLE: u64 = 9;
const SMART_SETTLED: u64 = 27;
/// Pages that are written to, at most.
const WRITES: u64 = 4096;
const OFTEN: Duration = Duration::from_millis(5);
/// Reading a counter costs a daemon time, which would be counted.
const SELDOM: Duration = Duration::from_millis(20);

/// What all rounds of a case have in common.
#[derive(Debug)]
pub struct Plan<'a> {
    pub kit: &'a str,
    pub case: Case,
    pub parts: Vec<Part>,
    pub expected: Expected,
    /// How long a scan that finds nothing new is repeated, at least.
    pub repeat: Duration,
    /// Bytes that the apps take while nobody merges them.
    unmerged: i64,
    /// Bytes that the apps have outside their pages then.
    unmerged_outside: u64,
}

/// What a round gave.
#[derive(Debug)]
pub struct Round {
    pub sample: Sample,
    pub curve: Vec<(f64, f64)>,
}

impl<'a> Plan<'a> {
    /// Runs the apps once with nobody to merge them.
    pub fn new(kit: &'a str, case: Case, mib: u64, repeat: Duration) -> io::Result<Self> {
        let parts = case.parts(mib);
        let mut expected = expected(&parts, LIMIT, case.use_zero_pages())?;
        if case.hot {
            expected.sharing -= (parts[0].pages / 4) as u64;
        }
        let before = meters::in_use(repeat, pause)?;
        let mut apps = Apps::start(kit, None, &parts)?;
        Ok(Self {
            kit,
            case,
            expected,
            repeat,
            unmerged: meters::in_use(repeat, pause)? - before,
            unmerged_outside: apps.sums("status")?[0],
            parts,
        })
    }

    fn pages(&self) -> f64 {
        let pages: usize = self.parts.iter().map(|part| part.pages).sum();
        float(pages as u64)
    }

    /// Measures everything that this case is for; every byte is compared at the end.
    pub fn round(&self, kernel: Option<&KernelKsm>) -> io::Result<Round> {
        let mut sample = Sample::new();
        let mut put = |key: &str, value: f64| sample.insert(key.to_owned(), value);
        let in_use = meters::in_use(self.repeat, pause)?;
        let side = Side::start(kernel, self.kit)?;
        let idle = side.daemon().map(meters::own_memory).transpose()?;
        let mut apps = Apps::start(self.kit, Some(&side), &self.parts)?;
        let tasks = side.tasks(&apps.pids())?;
        let slab = meters::slab()?;
        if self.case.use_zero_pages() {
            side.set("use_zero_pages", "1")?;
        }
        if self.case.hot {
            apps.0[0].ask("hot on");
        }
        let (start, on_cpu) = (meters::busy()?, meters::on_cpu(&tasks)?);
        let curve = converge(&side, self.expected)?;
        put(figures::CONVERGE, curve.last().map_or(0.0, |last| last.0));
        put(figures::CONVERGE_TASKS, meters::on_cpu(&tasks)? - on_cpu);
        if self.case.hot {
            put(figures::THROUGHPUT, self.throughput(&side, &mut apps)?);
            apps.0[0].ask("hot off");
        } else {
            put(figures::CONVERGE_CPU, meters::busy()? - start);
        }
        if !self.case.hot && !self.case.growth {
            let scans = self.scans(&side, &tasks, 1, 2)?;
            put(figures::RESCAN, scans.cpu * 1e3);
            put(figures::RESCAN_TIME, scans.time * 1e3);
            side.set("smart_scan", "1")?;
            let scans = self.scans(&side, &tasks, SMART_CYCLE, SMART_SETTLED)?;
            put(figures::RESCAN_SMART, scans.cpu * 1e3);
        }
        side.set("run", "0")?;
        let taken = meters::in_use(self.repeat, pause)? - in_use;
        put(figures::SAVED, mib(self.unmerged - taken));
        let status = apps.sums("status")?;
        let books = match (side.daemon(), idle) {
            (Some(daemon), Some(idle)) => {
                let [most, longest] = holds(&mut apps)?;
                put(figures::HELD_MOST, most);
                put(figures::HELD_LONGEST, longest);
                let outside = status[0].saturating_sub(self.unmerged_outside);
                let grown = meters::own_memory(daemon)?.saturating_sub(idle);
                float(grown + outside)
            }
            _ => signed_float(meters::slab()? - slab),
        };
        put(figures::BOOKS, books / self.pages());
        let merged = self.expected.sharing + self.expected.zero;
        if merged > 0 && self.case.workload != Workload::Files {
            let count = WRITES.min(merged / 4);
            let last = apps.0.last_mut().expect("a case has apps");
            let time = last.ask(&format!("write {count}"));
            put(figures::WRITE, time.parse().map_err(io::Error::other)?);
        }
        if merged > 0 {
            put(figures::UNMERGE, unmerge(&side)? * 1e6 / float(merged));
        }
        apps.ask_all("verify");
        Ok(Round { sample, curve })
    }

    /// The cost of a scan, after `settle` scans; a multiple of `cycle` scans is measured.
    fn scans(&self, side: &Side<'_>, tasks: &[u32], cycle: u64, settle: u64) -> io::Result<Scan> {
        let scans = || side.count("full_scans");
        let settled = scans()? + settle;
        until("scans to settle", OFTEN, |_| Ok(scans()? >= settled))?;
        let (first, on_cpu, start) = (scans()?, meters::on_cpu(tasks)?, Instant::now());
        until("scans that find nothing", SELDOM, |elapsed| {
            let done = scans()? - first;
            // Where scans are short, a part of a cycle among many weighs nothing.
            let whole = done > 0 && (done.is_multiple_of(cycle) || done > 10 * cycle);
            Ok(whole && elapsed >= self.repeat)
        })?;
        let count = float(scans()? - first);
        Ok(Scan {
            cpu: (meters::on_cpu(tasks)? - on_cpu) / count,
            time: start.elapsed().as_secs_f64() / count,
        })
    }

    /// What the writer gets done while it is scanned, of what it does otherwise.
    fn throughput(&self, side: &Side<'_>, apps: &mut Apps) -> io::Result<f64> {
        let slices: u32 = 4;
        let mut done = [0.0; 2];
        for _ in 0..slices {
            for (run, done) in ["0", "1"].into_iter().zip(&mut done) {
                side.set("run", run)?;
                pause(OFTEN)?;
                let mut written = || {
                    let answer = apps.0[0].ask("hot on");
                    answer.parse::<u64>().map_err(io::Error::other)
                };
                let (before, mut after) = (written()?, 0);
                // On a busy machine the writer may not run at all for a while.
                let time = until("the writer to write", self.repeat / slices, |elapsed| {
                    after = written()?;
                    Ok(after > before && elapsed >= self.repeat / slices)
                })?;
                *done += float(after - before) / time.as_secs_f64();
            }
        }
        Ok(done[1] / done[0])
    }
}

/// Microseconds within which 99.99 % of the holds ended, and the longest one; of the app that had it worst.
fn holds(apps: &mut Apps) -> io::Result<[f64; 2]> {
    let mut most = [0; 2];
    for app in &mut apps.0 {
        let answer = app.ask("status");
        for (most, word) in most.iter_mut().zip(answer.split_whitespace().skip(1)) {
            *most = word.parse::<u64>().map_err(io::Error::other)?.max(*most);
        }
    }
    Ok(most.map(|nanoseconds| float(nanoseconds) / 1e3))
}

/// Scans until what can be shared is; the part that was, over time.
pub fn converge(side: &Side<'_>, expected: Expected) -> io::Result<Vec<(f64, f64)>> {
    let expected = float(expected.sharing + expected.zero);
    let mut curve = Vec::new();
    // Zero pages of processes that do not take part are counted, too, and stay.
    let zero = side.count("ksm_zero_pages")?;
    // The kernel's have been counted since it was started.
    let scans = side.count("full_scans")?;
    side.set("run", "1")?;
    until("the expected pages to be shared", OFTEN, |elapsed| {
        let part = if expected > 0.0 {
            float(merged(side, zero)?) / expected
        } else {
            float(side.count("full_scans")? - scans) / float(SCANS_OF_UNIQUE)
        };
        curve.push((elapsed.as_secs_f64(), part.min(1.0)));
        Ok(part >= CONVERGED)
    })?;
    Ok(curve)
}

struct Scan {
    cpu: f64,
    time: f64,
}

/// Merged pages, without the `zero` pages that there were before.
fn merged(side: &Side<'_>, zero: u64) -> io::Result<u64> {
    let zeros = side.count("ksm_zero_pages")?.saturating_sub(zero);
    Ok(side.count("pages_sharing")? + zeros)
}

/// Seconds until nothing is merged any more.
fn unmerge(side: &Side<'_>) -> io::Result<f64> {
    let start = Instant::now();
    side.set("run", "2")?;
    until("pages to be unmerged", OFTEN, |_| {
        Ok(side.count("pages_sharing")? == 0)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    side.set("run", "0")?;
    Ok(seconds)
}

fn mib(bytes: i64) -> f64 {
    signed_float(bytes) / signed_float(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^52")]
fn signed_float(count: i64) -> f64 {
    count as f64
}

/// Bytes of all pages of these parts.
pub fn bytes(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.pages * PAGE_SIZE).sum()
}
