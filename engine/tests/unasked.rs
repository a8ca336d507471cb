//! Reports on visits that sum up what they were not asked to.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::{Engine, Extras, ReportError};
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Donation, Order, ReportRef, VisitRun};
use ksm_engine::page::{DomainId, PageBytes, PageRun};
use std::time::Duration;

struct Nothing;

impl Donation for Nothing {
    fn copy_pages(&self, _: usize, _: &mut [PageBytes]) {}
}

/// Says of the pages of the first visit that they are as last reported. Whether it was asked to be brief, and the answer.
fn sum_up(prepare: impl FnOnce(&mut Engine<MemfdStore>)) -> (bool, Result<(), ReportError>) {
    let mut engine = Engine::new(MemfdStore::new(), [7; 32]);
    prepare(&mut engine);
    engine.write(KsmFile::Run, b"1").unwrap();
    let mm = engine.add_mm(DomainId(1)).unwrap();
    engine.register(mm, PageRun { start: 16, len: 8 });
    engine.advance(Duration::from_secs(1));
    let (mm, id, order) = engine.take_order().unwrap();
    let Order::Visit { range, brief, .. } = order else {
        panic!("{order:?}");
    };
    let runs = [VisitRun::unchanged(range.start, 8, 8)];
    let report = ReportRef::Visited {
        end: range.end(),
        zero_pages: 0,
        runs: &runs,
        digests: &[],
    };
    (brief, engine.report(mm, id, &report, &Nothing))
}

#[test]
fn who_was_asked_to_be_brief_may_sum_up() {
    assert_eq!(sum_up(|_| ()), (true, Ok(())));
}

/// Its app was in the way all the time. That is nobody's fault, and the pages are looked at in the next scan.
#[test]
fn an_agent_that_could_look_at_nothing_is_believed() {
    let mut engine = Engine::new(MemfdStore::new(), [7; 32]);
    engine.write(KsmFile::Run, b"1").unwrap();
    let mm = engine.add_mm(DomainId(1)).unwrap();
    engine.register(mm, PageRun { start: 16, len: 8 });
    let mut visits = 0;
    for seconds in 1..10 {
        engine.advance(Duration::from_secs(seconds));
        while let Some((mm, id, order)) = engine.take_order() {
            let Order::Visit { range, .. } = order else {
                panic!("{order:?}");
            };
            visits += 1;
            let report = ReportRef::Visited {
                end: range.start,
                zero_pages: 0,
                runs: &[],
                digests: &[],
            };
            assert_eq!(engine.report(mm, id, &report, &Nothing), Ok(()));
        }
    }
    assert!(visits > 1 && engine.full_scans() > 1);
}

/// Each page has its node in it then.
#[test]
fn where_nodes_matter_nothing_may_be_summed_up() {
    let summed_up = sum_up(|engine| {
        engine.write(KsmFile::MergeAcrossNodes, b"0").unwrap();
    });
    assert_eq!(summed_up, (false, Err(ReportError::WrongPages)));
}

/// And here whether it is a part of a huge page.
#[test]
fn where_huge_pages_matter_nothing_may_be_summed_up() {
    let summed_up = sum_up(|engine| {
        engine.set_extras(Extras {
            huge_pages_as_ksmd: true,
            ..Extras::default()
        });
    });
    assert_eq!(summed_up, (false, Err(ReportError::WrongPages)));
}
