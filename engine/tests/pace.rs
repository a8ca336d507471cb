//! How soon one full scan follows another.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod changing;

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::Engine;
use ksm_engine::knobs::KsmFile;
use ksm_engine::page::{DomainId, PageRun};
use std::time::Duration;

const MILLI: Duration = Duration::from_millis(1);

/// Full scans in so many milliseconds, with agents that take no time.
fn scans(engine: &mut Engine<MemfdStore>, millis: u32) -> u64 {
    let from = engine.full_scans();
    for now in 0..millis {
        engine.advance(now * MILLI);
        while let Some((mm, id, order)) = engine.take_order() {
            changing::answer(engine, mm, id, &order);
        }
    }
    engine.full_scans() - from
}

fn engine(sleep_millisecs: &[u8], pages: u64) -> Engine<MemfdStore> {
    let mut engine = Engine::new(MemfdStore::new(), [5; 32]);
    engine
        .write(KsmFile::SleepMillisecs, sleep_millisecs)
        .unwrap();
    let mm = engine.add_mm(DomainId(0)).unwrap();
    engine.register(
        mm,
        PageRun {
            start: 16,
            len: pages,
        },
    );
    engine
}

#[test]
fn what_is_written_all_the_time_gets_time_to_be_written() {
    let mut engine = engine(b"0", 8);
    engine.write(KsmFile::Run, b"1").unwrap();
    let scans = scans(&mut engine, 1000);
    assert!((40..=51).contains(&scans), "{scans} scans in a second");
}

#[test]
fn more_memory_gets_more_time() {
    for (pages, most) in [(50_000, 21), (200_000, 11)] {
        let mut engine = engine(b"0", pages);
        engine.write(KsmFile::PagesToScan, b"10000000").unwrap();
        engine.write(KsmFile::Run, b"1").unwrap();
        let scans = scans(&mut engine, 1000);
        assert!(
            (most - 2..=most).contains(&scans),
            "{scans} scans in a second"
        );
    }
}

#[test]
fn a_longer_sleep_is_as_long_as_it_says() {
    let mut engine = engine(b"100", 8);
    engine.write(KsmFile::Run, b"1").unwrap();
    let scans = scans(&mut engine, 1000);
    assert!((9..=11).contains(&scans), "{scans} scans in a second");
}

#[test]
fn a_scan_that_somebody_waits_for_comes_at_once() {
    let mut engine = engine(b"0", 8);
    engine.write(KsmFile::Run, b"1").unwrap();
    assert_eq!(scans(&mut engine, 2), 1);
    engine.scan_now();
    assert!(scans(&mut engine, 2) >= 1);
}
