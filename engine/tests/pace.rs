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
fn what_is_written_all_the_time_gets_time_to_be_written_and_longer_sleeps_stay_as_they_are() {
    for (sleep, pages, expected) in [
        ("0", 8, 40..=51),
        ("0", 50_000, 19..=21),
        ("0", 200_000, 9..=11),
        ("100", 8, 9..=11),
    ] {
        let mut engine = engine(sleep.as_bytes(), pages);
        engine.write(KsmFile::PagesToScan, b"10000000").unwrap();
        engine.write(KsmFile::Run, b"1").unwrap();
        let scans = scans(&mut engine, 1000);
        assert!(
            expected.contains(&scans),
            "{scans} scans of {pages} pages in a second, with a sleep of {sleep}"
        );
    }
}

#[test]
fn a_scan_that_somebody_waits_for_comes_at_once() {
    let mut engine = engine(b"0", 8);
    engine.write(KsmFile::Run, b"1").unwrap();
    assert_eq!(scans(&mut engine, 2), 1);
    engine.scan_now();
    assert!(scans(&mut engine, 2) >= 1);
}
