//! What a user gets who has all that he may have.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod changing;
mod pairs;

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::{Engine, Quotas};
use ksm_engine::knobs::KsmFile;
use ksm_engine::page::{DomainId, MmId, PAGE_SIZE, PageRun, UserId};
use pairs::Pairs;
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

/// Scans until nothing more merges.
fn merge(engine: &mut Engine<MemfdStore>, agents: &mut [&mut Pairs], now: &mut Duration) {
    let until = engine.full_scans() + 6;
    while engine.full_scans() < until {
        *now += Duration::from_millis(50);
        engine.advance(*now);
        while let Some((mm, id, order)) = engine.take_order() {
            let mut agents = agents.iter_mut();
            let agent = agents.find(|agent| agent.mm == mm).unwrap();
            agent.follow(engine, id, &order);
        }
        engine.audit().unwrap();
    }
}

fn with_room_for(slots: u64) -> Engine<MemfdStore> {
    let mut engine = Engine::new(MemfdStore::new(), [7; 32]);
    engine.set_quotas(Quotas {
        arena_bytes_per_user: slots * PAGE_SIZE as u64,
        ..Quotas::default()
    });
    engine.write(KsmFile::SmartScan, b"0").unwrap();
    engine.write(KsmFile::Run, b"1").unwrap();
    engine
}

#[test]
fn a_user_has_no_more_merged_pages_in_all_of_his_domains_than_he_may() {
    let mut engine = with_room_for(10);
    let (greedy, other) = (UserId(1), UserId(2));
    let mut here = Pairs::join(&mut engine, DomainId(1), greedy, 8);
    let mut there = Pairs::join(&mut engine, DomainId(2), greedy, 8);
    let mut shares = Pairs::join(&mut engine, DomainId(2), other, 8);
    // Other bytes than those of whom it shares the domain with.
    shares.fill(100);
    let mut agents = [&mut here, &mut there, &mut shares];
    let mut now = Duration::ZERO;
    merge(&mut engine, &mut agents, &mut now);
    assert_eq!(here.merged() + there.merged(), 20);
    assert_eq!(shares.merged(), 16);
}

/// Slots that are not in use any more take memory as long as their arena is there.
#[test]
fn what_a_user_gives_up_he_can_have_again() {
    let mut engine = with_room_for(10);
    let mut agent = Pairs::join(&mut engine, DomainId(1), UserId(1), 12);
    let mut now = Duration::ZERO;
    for content in [1, 100, 200] {
        agent.fill(content);
        merge(&mut engine, &mut [&mut agent], &mut now);
        merge(&mut engine, &mut [&mut agent], &mut now);
        assert_eq!(agent.merged(), 20, "{content}");
    }
}

/// Nothing stays of it: an arena that is open would, with nobody there to fill it.
#[test]
fn a_closed_domain_goes_with_its_last_process() {
    let mut engine = with_room_for(1000);
    let (user, given) = (UserId(1), DomainId(0xf000_0000));
    let mut first = Pairs::join(&mut engine, given, user, 8);
    let mut second = Pairs::join(&mut engine, given, user, 8);
    let mut now = Duration::ZERO;
    merge(&mut engine, &mut [&mut first, &mut second], &mut now);
    assert_eq!(engine.counters().slots_used, 8);
    engine.close_domain(given);
    engine.remove_mm(first.mm);
    merge(&mut engine, &mut [&mut second], &mut now);
    assert_eq!(engine.counters().slots_used, 8);
    engine.remove_mm(second.mm);
    assert!(engine.knows_domain(given), "its pages are still there");
    let mut other = Pairs::join(&mut engine, DomainId(1), user, 8);
    merge(&mut engine, &mut [&mut other], &mut now);
    assert!(!engine.knows_domain(given));
    let counters = engine.counters();
    assert_eq!((counters.slots_used, counters.slots_dead), (8, 0));
    engine.close_domain(DomainId(1));
    let mut joins = Pairs::join(&mut engine, DomainId(1), user, 8);
    engine.remove_mm(other.mm);
    merge(&mut engine, &mut [&mut joins], &mut now);
    assert_eq!(joins.merged(), 16, "it was not closed any more");
}
