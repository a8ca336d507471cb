//! A process that has no maps left is asked for little until the next scan.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ksm_engine::arena::MemfdStore;
use ksm_engine::digest::Salt;
use ksm_engine::engine::Engine;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{
    DONATION_PAGES, Donation, Order, OrderId, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{DomainId, MmId, NumaNode, PAGE_SIZE, PageBytes, PageRun, Slot};
use std::time::Duration;

const FIRST: u64 = 1 << 10;
/// Every other page has a twin half of them away, but for a stretch at the end where all have.
const PAGES: u64 = 1 << 14;
const LONG: u64 = 64;

fn content(page: u64) -> u64 {
    let (at, half) = (page - FIRST, PAGES / 2);
    let is_twin = at.is_multiple_of(2) || at % half >= half - LONG;
    if is_twin { at % half } else { at + PAGES }
}

fn bytes(page: u64) -> PageBytes {
    let mut bytes = [1; PAGE_SIZE];
    bytes[..8].copy_from_slice(&content(page).to_le_bytes());
    bytes
}

struct Donated(Vec<u64>);

impl Donation for Donated {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        for (into, page) in into.iter_mut().zip(&self.0[first..]) {
            *into = bytes(*page);
        }
    }
}

struct Agent {
    salt: Salt,
    /// There are maps for runs of so many pages.
    shortest: u64,
    donated: usize,
    mapped: u64,
}

impl Agent {
    fn answer(&mut self, engine: &mut Engine<MemfdStore>, mm: MmId, id: OrderId, order: &Order) {
        let none = Donated(Vec::new());
        let outcome = |run: PageRun, outcome| OutcomeRun {
            start: run.start,
            len: u32::try_from(run.len).unwrap(),
            outcome: outcome as u32,
        };
        match order {
            Order::Visit { range, limit, .. } => {
                let run = PageRun::between(
                    range.start,
                    range.end().min(range.start + u64::from(*limit)),
                );
                let calm = engine.full_scans() > 0;
                let state = if calm {
                    VisitState::Calm
                } else {
                    VisitState::Changed
                };
                let runs = [VisitRun {
                    start: run.start,
                    len: u32::try_from(run.len).unwrap(),
                    state: state as u32,
                    slot: Slot::of_node(NumaNode(0)),
                }];
                let pages = (run.start..run.end()).filter(|_| calm);
                let digests: Vec<_> = pages.map(|page| self.salt.digest(&bytes(page))).collect();
                let report = ReportRef::Visited {
                    end: run.end(),
                    zero_pages: 0,
                    runs: &runs,
                    digests: &digests,
                };
                engine.report(mm, id, &report, &none).unwrap();
            }
            Order::Donate { runs } => {
                let pages = runs.iter().flat_map(|run| run.start..run.end()).collect();
                let donated = Donated(pages);
                self.donated += donated.0.len();
                let outcomes: Vec<_> = runs
                    .iter()
                    .map(|run| outcome(*run, Outcome::Done))
                    .collect();
                let report = ReportRef::Done {
                    outcomes: &outcomes,
                };
                engine.report(mm, id, &report, &donated).unwrap();
            }
            Order::Map { runs, .. } => {
                let outcomes: Vec<_> = runs
                    .iter()
                    .map(|run| {
                        let fits = u64::from(run.len) >= self.shortest;
                        self.mapped += if fits { run.len.into() } else { 0 };
                        outcome(
                            run.pages(),
                            if fits { Outcome::Done } else { Outcome::NoMaps },
                        )
                    })
                    .collect();
                let report = ReportRef::Done {
                    outcomes: &outcomes,
                };
                engine.report(mm, id, &report, &none).unwrap();
            }
            other => panic!("nothing here leads to {other:?}"),
        }
    }
}

#[test]
fn what_there_are_no_maps_for_is_not_donated_again_and_again() {
    let mut engine = Engine::new(MemfdStore::new(), [9; 32]);
    for (file, value) in [
        (KsmFile::PagesToScan, "100000"),
        (KsmFile::SmartScan, "0"),
        (KsmFile::Run, "1"),
    ] {
        engine.write(file, value.as_bytes()).unwrap();
    }
    let mm = engine.add_mm(DomainId(0)).unwrap();
    engine.register(
        mm,
        PageRun {
            start: FIRST,
            len: PAGES,
        },
    );
    let mut agent = Agent {
        salt: engine.salt(DomainId(0)),
        shortest: 4,
        donated: 0,
        mapped: 0,
    };
    let mut now = Duration::ZERO;
    let mut scan = |engine: &mut Engine<MemfdStore>, agent: &mut Agent| {
        let scans = engine.full_scans();
        (agent.donated, agent.mapped) = (0, 0);
        while engine.full_scans() == scans {
            now += Duration::from_millis(50);
            engine.advance(now);
            while let Some((mm, id, order)) = engine.take_order() {
                agent.answer(engine, mm, id, &order);
            }
        }
    };
    scan(&mut engine, &mut agent);
    for _ in 0..3 {
        scan(&mut engine, &mut agent);
        assert!(
            agent.donated <= 6 * DONATION_PAGES,
            "{} pages were donated",
            agent.donated
        );
    }
    assert_eq!(
        engine.counters().pages_sharing,
        LONG,
        "long runs are mapped all the same"
    );
    assert!(
        engine.outcomes()[&Outcome::NoMaps] > PAGES / 2,
        "the reason is said of each page"
    );
    // With more maps the next scan merges all of them.
    agent.shortest = 1;
    scan(&mut engine, &mut agent);
    assert_eq!(engine.counters().pages_sharing, PAGES / 4 + LONG / 2);
}
