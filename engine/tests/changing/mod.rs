//! An agent that finds every page changed, and so has nothing to donate.

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::Engine;
use ksm_engine::order::{Donation, Order, OrderId, ReportRef, VisitRun, VisitState};
use ksm_engine::page::{ArenaId, MmId, PageBytes, Slot};

struct Nothing;

impl Donation for Nothing {
    fn copy_pages(&self, _: usize, _: &mut [PageBytes]) {}
}

/// Answers an order to visit pages; there must be no other.
pub fn answer(engine: &mut Engine<MemfdStore>, mm: MmId, id: OrderId, order: &Order) {
    let Order::Visit { range, limit, .. } = order else {
        panic!("nothing is to be merged here: {order:?}");
    };
    let len = range.len.min((*limit).into());
    let runs = [VisitRun {
        start: range.start,
        len: u32::try_from(len).unwrap(),
        state: VisitState::Changed as u32,
        slot: Slot {
            arena: ArenaId(0),
            index: 0,
        },
    }];
    let report = ReportRef::Visited {
        end: range.start + len,
        zero_pages: 0,
        runs: &runs,
        digests: &[],
    };
    engine.report(mm, id, &report, &Nothing).unwrap();
}
