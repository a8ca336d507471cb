//! What a user gets who has all that he may have.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod changing;

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::{Engine, Quotas};
use ksm_engine::knobs::KsmFile;
use ksm_engine::page::{DomainId, MmId, PageRun};
use std::time::Duration;

/// Lets all agents say that every page has changed, until there were two more scans.
fn scan(engine: &mut Engine<MemfdStore>, now: &mut Duration) {
    let until = engine.full_scans() + 2;
    while engine.full_scans() < until {
        *now += Duration::from_millis(50);
        engine.advance(*now);
        while let Some((mm, id, order)) = engine.take_order() {
            changing::answer(engine, mm, id, &order);
        }
    }
}

#[test]
fn a_user_has_no_more_pages_than_he_may() {
    let mut engine = Engine::new(MemfdStore::new(), [7; 32]);
    engine.set_quotas(Quotas {
        pages_per_user: 100,
        ..Quotas::default()
    });
    engine.write(KsmFile::Run, b"1").unwrap();
    let mut join = |user: u32, pages| {
        let mm: MmId = engine.add_mm(DomainId(user)).unwrap();
        let range = PageRun {
            start: 16,
            len: pages,
        };
        engine.register(mm, range);
        mm
    };
    let (greedy, sibling, other) = (join(1, 90), join(1, 50), join(2, 100));
    let mut now = Duration::ZERO;
    scan(&mut engine, &mut now);
    let items = |engine: &Engine<MemfdStore>, mm| engine.figures(mm).rmap_items;
    assert_eq!(items(&engine, greedy) + items(&engine, sibling), 100);
    assert_eq!(items(&engine, other), 100);
    // What one gives up another one gets.
    engine.remove_mm(greedy);
    scan(&mut engine, &mut now);
    scan(&mut engine, &mut now);
    assert_eq!(items(&engine, sibling), 50);
}
