//! The engine alone, with more memory than a machine has: the pages are a rule and not bytes.
//!
//! So many processes have so many pages in all. Every 64th page has a twin in the next process; all others are unlike
//! any. The agents are this program: they report what the rule says, and the time and memory of the engine are measured.
//!
//! `cargo bench -p testsuite --bench engine_scale -- [--gib 1,4,16] [--processes 1000]`

use clap::Parser;
use ksm_engine::digest::Salt;
use ksm_engine::engine::Engine;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Donation, Order, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState};
use ksm_engine::page::{
    ArenaId, Digest, DomainId, MmId, NumaNode, PAGE_SIZE, PageBytes, PageRun, Slot,
};
use ksm_engine::store::{SlotStore, StoreError};
use std::time::{Duration, Instant};
use testsuite::content::{fill, mix};

/// Every so many pages one has a twin.
const TWIN_EVERY: u64 = 64;
/// The first page of every process.
const FIRST: u64 = 1 << 20;
/// Scans in which nothing changes.
const RESCANS: u64 = 3;

#[derive(Parser)]
struct Options {
    /// GiB of tracked pages
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16])]
    gib: Vec<u64>,
    /// Processes that have them
    #[arg(long, default_value_t = 1000)]
    processes: u64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// A store that keeps no bytes: nothing is ever asked for them here.
#[derive(Debug, Default)]
struct NoBytes;

impl SlotStore for NoBytes {
    fn create(&mut self, _: ArenaId, _: DomainId, _: Option<NumaNode>) -> Result<(), StoreError> {
        Ok(())
    }
    fn write(&mut self, _: Slot, _: &[PageBytes]) -> Result<(), StoreError> {
        Ok(())
    }
    fn read(&self, slot: Slot, _: &mut PageBytes) -> Result<(), StoreError> {
        Err(StoreError::NotOpen(slot.arena))
    }
    fn finish(&mut self, _: ArenaId) {}
    fn release(&mut self, _: ArenaId) {}
}

/// The bytes of donated pages, by the number of their content.
struct Contents(Vec<u64>);

impl Donation for Contents {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        for (page, content) in into.iter_mut().zip(&self.0[first..]) {
            fill(page, *content);
        }
    }
}

fn has_twin(page: u64) -> bool {
    page.is_multiple_of(TWIN_EVERY)
}

/// The number of the content of a page that has a twin in the process with the other number of a pair.
fn content(mm: MmId, page: u64) -> u64 {
    u64::from((mm.0 - 1) / 2) << 40 | page
}

struct Scale {
    engine: Engine<NoBytes>,
    /// Time spent in the engine.
    spent: Duration,
    now: Duration,
    runs: Vec<VisitRun>,
    digests: Vec<Digest>,
}

impl Scale {
    fn new() -> Self {
        let mut scale = Self {
            engine: Engine::new(NoBytes, [1; 32]),
            spent: Duration::ZERO,
            now: Duration::ZERO,
            runs: Vec::new(),
            digests: Vec::new(),
        };
        for (file, value) in [
            (KsmFile::PagesToScan, "1000000"),
            (KsmFile::SleepMillisecs, "0"),
            (KsmFile::SmartScan, "0"),
        ] {
            let written = scale.engine.write(file, value.as_bytes());
            written.expect("a knob of the kernel's");
        }
        scale
    }

    fn timed<T>(&mut self, what: impl FnOnce(&mut Engine<NoBytes>) -> T) -> T {
        let start = Instant::now();
        let result = what(&mut self.engine);
        self.spent += start.elapsed();
        result
    }

    /// Lets one full scan pass; returns the time that the engine took.
    fn scan(&mut self) -> Duration {
        let before = self.spent;
        let scans = self.engine.full_scans();
        while self.engine.full_scans() == scans {
            while let Some((mm, id, order)) = self.timed(Engine::take_order) {
                self.answer(scans, mm, id, &order);
            }
            self.now += Duration::from_millis(1);
            let now = self.now;
            self.timed(|engine| engine.advance(now));
        }
        self.spent - before
    }

    fn answer(&mut self, scans: u64, mm: MmId, id: ksm_engine::order::OrderId, order: &Order) {
        let done = |runs: &mut dyn Iterator<Item = PageRun>| -> Vec<OutcomeRun> {
            runs.map(|run| OutcomeRun {
                start: run.start,
                len: u32::try_from(run.len).expect("orders are small"),
                outcome: Outcome::Done as u32,
            })
            .collect()
        };
        let nothing = Contents(Vec::new());
        match order {
            Order::Visit { range, limit, .. } => {
                let end = range.end().min(range.start + u64::from(*limit));
                self.look(scans, mm, PageRun::between(range.start, end));
                let (runs, digests) = (
                    std::mem::take(&mut self.runs),
                    std::mem::take(&mut self.digests),
                );
                let report = ReportRef::Visited {
                    end,
                    zero_pages: 0,
                    runs: &runs,
                    digests: &digests,
                };
                let taken = self.timed(|engine| engine.report(mm, id, &report, &nothing));
                taken.expect("an honest report");
                (self.runs, self.digests) = (runs, digests);
            }
            Order::Donate { runs } => {
                let pages = runs.iter().flat_map(|run| run.start..run.end());
                let contents = Contents(pages.map(|page| content(mm, page)).collect());
                let outcomes = done(&mut runs.iter().copied());
                let report = ReportRef::Done {
                    outcomes: &outcomes,
                };
                let taken = self.timed(|engine| engine.report(mm, id, &report, &contents));
                taken.expect("an honest report");
            }
            Order::Map { runs, .. } => {
                let outcomes = done(&mut runs.iter().map(ksm_engine::order::MapRun::pages));
                let report = ReportRef::Done {
                    outcomes: &outcomes,
                };
                let taken = self.timed(|engine| engine.report(mm, id, &report, &nothing));
                taken.expect("an honest report");
            }
            other => unreachable!("nothing here leads to {other:?}"),
        }
    }

    /// What a visit finds: all new, with digests, as pages are write-protected before they are read; then all calm; then all as it
    /// was.
    fn look(&mut self, scans: u64, mm: MmId, run: PageRun) {
        self.runs.clear();
        self.digests.clear();
        let len = u32::try_from(run.len).expect("visits are limited");
        if scans > 1 {
            self.runs.push(VisitRun::unchanged(run.start, len, len));
            return;
        }
        let state = if scans == 0 {
            VisitState::Calm
        } else {
            VisitState::CalmKnown
        };
        self.runs.push(VisitRun {
            start: run.start,
            len,
            state: state as u32,
            slot: Slot::of_node(NumaNode(0)),
        });
        if scans == 0 {
            let salt = self.engine.salt(DomainId(0));
            let digests = (run.start..run.end()).map(|page| digest(salt, mm, page));
            self.digests.extend(digests);
        }
    }
}

fn digest(salt: Salt, mm: MmId, page: u64) -> Digest {
    if has_twin(page) {
        let mut bytes = [0; PAGE_SIZE];
        fill(&mut bytes, content(mm, page));
        return salt.digest(&bytes);
    }
    let own = u64::from(mm.0) << 40 | page;
    let [a, b] = [mix(own), mix(!own)].map(u64::to_le_bytes);
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&a);
    digest[8..].copy_from_slice(&b);
    Digest(digest)
}

fn resident() -> u64 {
    let own = procfs::process::Process::myself().expect("/proc");
    own.statm().expect("/proc").resident * PAGE_SIZE as u64
}

#[expect(clippy::cast_precision_loss, reason = "for reading")]
fn measure(gib: u64, processes: u64) {
    let before = resident();
    let mut scale = Scale::new();
    let each = (gib << 30) / PAGE_SIZE as u64 / processes / TWIN_EVERY * TWIN_EVERY;
    for _ in 0..processes {
        let mm = scale.engine.add_mm(DomainId(0)).expect("a thousand");
        let run = PageRun {
            start: FIRST,
            len: each,
        };
        scale.engine.register(mm, run);
    }
    let run = scale.engine.write(KsmFile::Run, b"1");
    run.expect("a knob of the kernel's");
    let pages = (each * processes) as f64;
    let first = scale.scan().as_secs_f64();
    let second = scale.scan().as_secs_f64();
    let rescans: f64 = (0..RESCANS).map(|_| scale.scan().as_secs_f64()).sum();
    let bytes = (resident() - before) as f64;
    let counters = scale.engine.counters();
    let merged = counters.pages_shared + counters.pages_sharing;
    assert_eq!(
        merged,
        each / TWIN_EVERY * (processes / 2 * 2),
        "all twins merge"
    );
    println!(
        "| {gib} | {:.0} | {:.1} | {:.0} | {:.0} | {:.2} | {:.2} |",
        bytes / f64::from(1 << 20),
        bytes / pages,
        first * 1e9 / pages,
        second * 1e9 / pages,
        rescans / RESCANS as f64 * 1e9 / pages,
        rescans / RESCANS as f64 * 1e3,
    );
}

fn main() {
    let options = Options::parse();
    println!(
        "The engine alone, {} processes, every {TWIN_EVERY}th page with a twin; times are the engine's",
        options.processes
    );
    println!(
        "| GiB | memory, MiB | bytes a page | first scan, ns a page | decisions, ns a page | scan without change, ns a page | the same, ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    for gib in &options.gib {
        measure(*gib, options.processes);
    }
}
