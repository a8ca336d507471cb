//! Decoding of messages, on both sides: what is taken for a message keeps what its kind promises, and is the same
//! message after it was encoded and decoded again.

use ksm_engine::order::{
    MAP_PAGES, MOST_VISITED, MapRun, OrderRef, Outcome, OutcomeRun, ReportRef, VISIT_PAGES,
    VisitRun, VisitState,
};
use ksm_engine::page::{ARENA_SLOT_LIMIT, PAGE_LIMIT, PageRun};
use ksm_engine::wire::{MAX_MESSAGE, MessageBuffer, ToAgent, ToDaemon};
use std::cell::RefCell;

type Buffers = (Box<MessageBuffer>, Box<MessageBuffer>);

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new((buffer(), buffer()));
}

fn buffer() -> Box<MessageBuffer> {
    Box::new(MessageBuffer([0; MAX_MESSAGE]))
}

/// Places the message as the socket does: at the start of an aligned buffer.
fn with_message(data: &[u8], use_it: impl FnOnce(&[u8], &mut MessageBuffer)) {
    BUFFERS.with_borrow_mut(|(received, encoded)| {
        let data = &data[..data.len().min(MAX_MESSAGE)];
        received.0[..data.len()].copy_from_slice(data);
        use_it(&received.0[..data.len()], encoded);
    });
}

pub fn to_daemon(data: &[u8]) {
    with_message(data, |received, encoded| {
        let Ok(message) = ToDaemon::decode(received) else {
            return;
        };
        keeps_promises_to_daemon(&message);
        let len = message.encode(encoded).expect("it came in a buffer");
        assert_eq!(ToDaemon::decode(&encoded.0[..len]), Ok(message));
    });
}

pub fn to_agent(data: &[u8]) {
    with_message(data, |received, encoded| {
        let Ok(message) = ToAgent::decode(received) else {
            return;
        };
        keeps_promises_to_agent(&message);
        let len = message.encode(encoded).expect("it came in a buffer");
        assert_eq!(ToAgent::decode(&encoded.0[..len]), Ok(message));
    });
}

/// Nothing overflows that is computed from a run.
fn is_in_memory(run: PageRun) {
    assert!(run.len > 0, "{run:?} is empty");
    let end = run.start.checked_add(run.len);
    assert!(
        end.is_some_and(|end| end <= PAGE_LIMIT),
        "{run:?} is no user memory"
    );
}

fn are_ascending(runs: impl Iterator<Item = PageRun>) {
    let mut last = 0;
    for run in runs {
        is_in_memory(run);
        assert!(run.start >= last, "{run:?} begins before {last}");
        last = run.end();
    }
}

fn keeps_promises_to_daemon(message: &ToDaemon<'_>) {
    match *message {
        ToDaemon::Register { range } | ToDaemon::Unregister { range } => is_in_memory(range),
        ToDaemon::Report { report, .. } => match report {
            ReportRef::Visited { runs, digests, .. } => {
                are_ascending(runs.iter().map(VisitRun::pages));
                let pages = |state: fn(VisitState) -> bool| -> u64 {
                    let found = |run: &VisitRun| run.found().expect("only known states");
                    let fits = runs.iter().filter(|run| state(found(run)));
                    fits.map(|run| u64::from(run.len)).sum()
                };
                let calm = pages(|state| state == VisitState::Calm);
                assert_eq!(calm, digests.len() as u64);
                assert!(calm <= VISIT_PAGES.into());
                let counted: u64 = runs.iter().map(VisitRun::counted).sum();
                assert!(counted <= MOST_VISITED.into());
                for run in runs {
                    if run.found() == Some(VisitState::Merged) {
                        has_slots(run.slot.index, run.len);
                    }
                }
            }
            ReportRef::Done { outcomes } => {
                for run in outcomes {
                    is_in_memory(OutcomeRun::pages(run));
                    assert!(Outcome::from_number(run.outcome).is_some());
                }
            }
            ReportRef::Unmerged { .. } | ReportRef::Counted { .. } => {}
        },
        ToDaemon::Hello(_)
        | ToDaemon::Query
        | ToDaemon::Locate
        | ToDaemon::AllSaid
        | ToDaemon::Holds { .. }
        | ToDaemon::Processes
        | ToDaemon::Scan
        | ToDaemon::Mode { .. } => {}
    }
}

fn has_slots(first: u32, len: u32) {
    let end = first.checked_add(len);
    assert!(
        end.is_some_and(|end| end <= ARENA_SLOT_LIMIT),
        "{len} slots from {first} on"
    );
}

fn keeps_promises_to_agent(message: &ToAgent<'_>) {
    let ToAgent::Order { order, .. } = *message else {
        return;
    };
    match order {
        OrderRef::Visit {
            range, limit, skip, ..
        } => {
            is_in_memory(range);
            are_ascending(skip.iter().copied());
            assert!(limit <= MOST_VISITED);
        }
        OrderRef::Donate { runs } | OrderRef::Zero { runs } | OrderRef::Split { runs } => {
            runs.iter().copied().for_each(is_in_memory);
        }
        OrderRef::Map { runs, .. } | OrderRef::Remap { runs, .. } => {
            runs.iter().map(MapRun::pages).for_each(is_in_memory);
            runs.iter().for_each(|run| has_slots(run.slot, run.len));
            let pages: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
            assert!(pages <= MAP_PAGES as u64);
        }
        OrderRef::Unmerge { range } => is_in_memory(range),
        OrderRef::Count => {}
    }
}
