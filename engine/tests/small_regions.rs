//! A process with very many small regions is asked for many of them at a time.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::Engine;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Donation, Order, ReportRef, VisitRun, VisitState};
use ksm_engine::page::{DomainId, MmId, NumaNode, PageBytes, PageRun, Slot};
use std::time::Duration;

const FIRST: u64 = 64;
const REGIONS: u64 = 4096;

struct Nothing;

impl Donation for Nothing {
    fn copy_pages(&self, _: usize, _: &mut [PageBytes]) {}
}

fn number(engine: &Engine<MemfdStore>, file: KsmFile) -> u64 {
    engine.read(file).trim().parse().unwrap()
}

/// Every other page is a region of its own.
fn engine_with_single_pages() -> (Engine<MemfdStore>, MmId) {
    let mut engine = Engine::new(MemfdStore::new(), [3; 32]);
    for (file, value) in [
        (KsmFile::PagesToScan, "100000"),
        (KsmFile::SleepMillisecs, "0"),
        (KsmFile::SmartScan, "0"),
    ] {
        engine.write(file, value.as_bytes()).unwrap();
    }
    let mm = engine.add_mm(DomainId(0)).unwrap();
    for region in 0..REGIONS {
        let start = FIRST + 2 * region;
        engine.register(mm, PageRun { start, len: 1 });
    }
    engine.write(KsmFile::Run, b"1").unwrap();
    (engine, mm)
}

/// Scans that often, with an agent that finds these pages changed; the orders that took.
fn scan(engine: &mut Engine<MemfdStore>, scans: u64, found: impl Fn(PageRun) -> Vec<u64>) -> u64 {
    let mut orders = 0;
    let (from, mut now) = (engine.full_scans(), Duration::ZERO);
    while engine.full_scans() < from + scans {
        now += Duration::from_millis(1);
        engine.advance(now);
        while let Some((mm, id, order)) = engine.take_order() {
            orders += 1;
            let Order::Visit { range, .. } = order else {
                panic!("nothing leads to {order:?}");
            };
            let run = |page| VisitRun {
                start: page,
                len: 1,
                state: VisitState::Changed as u32,
                slot: Slot::of_node(NumaNode(0)),
            };
            let runs: Vec<_> = found(range).into_iter().map(run).collect();
            let report = ReportRef::Visited {
                end: range.end(),
                zero_pages: 0,
                runs: &runs,
                digests: &[],
            };
            engine.report(mm, id, &report, &Nothing).unwrap();
        }
    }
    orders
}

fn single_pages(range: PageRun) -> Vec<u64> {
    (range.start..range.end())
        .filter(|page| page % 2 == 0)
        .collect()
}

#[test]
fn one_order_is_about_many_of_them() {
    let (mut engine, _) = engine_with_single_pages();
    let orders = scan(&mut engine, 2, single_pages);
    assert_eq!(number(&engine, KsmFile::PagesScanned), 2 * REGIONS);
    assert_eq!(number(&engine, KsmFile::PagesVolatile), REGIONS);
    assert!(orders < 32, "{orders} orders");
}

#[test]
fn what_is_said_of_pages_between_them_is_not_heard() {
    let (mut engine, mm) = engine_with_single_pages();
    scan(&mut engine, 2, |range| (range.start..range.end()).collect());
    assert_eq!(number(&engine, KsmFile::PagesScanned), 2 * REGIONS);
    assert_eq!(number(&engine, KsmFile::PagesVolatile), REGIONS);
    assert_eq!(engine.process(mm).rmap_items, REGIONS);
}
