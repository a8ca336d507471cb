//! Lies, bytes that change, and hands where they do not belong.

use crate::agent::{Agent, Heard};
use crate::siege::{Field, PAGES, withstand};
use ksm_engine::order::{
    DONATION_PAGES, MapRun, Order, OrderId, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, PAGE_SIZE, PageRun, Slot};
use ksm_engine::wire::{
    Birth, CHILDREN, Hello, LEDGER_OFFSET, Label, Ledger, RefusalReason, ToDaemon, Versions,
};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use testsuite::content;

/// How long an attacker listens before it looks whether it is over.
pub const LISTEN: Duration = Duration::from_millis(100);
pub const PAGE: u64 = 0x1000;
pub const NOWHERE: Slot = Slot {
    arena: ArenaId(0),
    index: 0,
};

pub fn run(range: PageRun, state: VisitState, slot: Slot) -> VisitRun {
    VisitRun {
        start: range.start,
        len: u32::try_from(range.len).unwrap(),
        state: state as u32,
        slot,
    }
}

pub fn visited(
    agent: &mut Agent,
    id: OrderId,
    end: u64,
    runs: &[VisitRun],
    digests: &[Digest],
) -> bool {
    let report = ReportRef::Visited {
        end,
        zero_pages: u64::MAX,
        runs,
        digests,
    };
    agent.offer(&ToDaemon::Report { order: id, report })
}

pub fn all_done(agent: &mut Agent, id: OrderId, runs: &[PageRun]) -> bool {
    let outcomes: Vec<_> = runs
        .iter()
        .map(|run| OutcomeRun {
            start: run.start,
            len: u32::try_from(run.len).unwrap(),
            outcome: Outcome::Done as u32,
        })
        .collect();
    let report = ReportRef::Done {
        outcomes: &outcomes,
    };
    agent.offer(&ToDaemon::Report { order: id, report })
}

/// Answers what is no visit as if all had been done.
pub fn pretend(field: &Field, agent: &mut Agent, id: OrderId, order: &Order) -> bool {
    match order {
        Order::Map { runs, .. } | Order::Remap { runs, .. } => {
            if let Some(arena) = agent.descriptors.first() {
                field.given(arena);
            }
            let runs: Vec<_> = runs.iter().map(MapRun::pages).collect();
            all_done(agent, id, &runs)
        }
        Order::Donate { runs } | Order::Zero { runs } | Order::Split { runs } => {
            all_done(agent, id, runs)
        }
        Order::Unmerge { range } => {
            let report = ReportRef::Unmerged { end: range.end() };
            agent.offer(&ToDaemon::Report { order: id, report })
        }
        Order::Visit { .. } | Order::Count => {
            let report = ReportRef::Counted {
                zero_pages: u64::MAX,
            };
            agent.offer(&ToDaemon::Report { order: id, report })
        }
    }
}

/// Follows orders until it is over or the daemon has cut it off.
pub fn follow(
    field: &Field,
    agent: &mut Agent,
    mut visit: impl FnMut(&mut Agent, OrderId, PageRun) -> bool,
) {
    while !field.is_over() {
        let goes_on = match agent.hear_within(LISTEN) {
            None => true,
            Some(Heard::Order(id, Order::Visit { range, .. })) => visit(agent, id, range),
            Some(Heard::Order(id, order)) => pretend(field, agent, id, &order),
            Some(_) => false,
        };
        if !goes_on {
            return;
        }
    }
}

/// Where a visit of these pages is said to have ended, and what is said to be there.
type Lie = fn(PageRun) -> (u64, Vec<PageRun>);

#[test]
fn lies_about_ranges() {
    let lies: [Lie; 5] = [
        |range| (range.end() + 1, vec![range]),
        |range| (0, vec![range]),
        |range| (range.end(), vec![PageRun { start: 0, len: 1 }]),
        |range| {
            let beyond = PageRun {
                start: range.start + 1,
                len: range.len,
            };
            (range.end(), vec![beyond])
        },
        |range| {
            (
                range.end(),
                vec![PageRun {
                    start: 1 << 34,
                    len: 1,
                }],
            )
        },
    ];
    withstand(|field| {
        for lie in lies {
            let Some(mut agent) = field.join() else {
                return;
            };
            agent.register(PAGE, PAGES as u64);
            follow(field, &mut agent, |agent, id, range| {
                let (end, runs) = lie(range);
                let runs: Vec<_> = runs
                    .into_iter()
                    .map(|pages| run(pages, VisitState::Changed, NOWHERE))
                    .collect();
                field.deed();
                visited(agent, id, end, &runs, &[])
            });
        }
    });
}

#[test]
fn lies_about_slots_that_it_does_not_have() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        agent.register(PAGE, PAGES as u64);
        let mut arena = 0;
        follow(field, &mut agent, |agent, id, range| {
            arena += 1;
            let slot = Slot {
                arena: ArenaId(arena % 8),
                index: arena % 64,
            };
            field.deed();
            visited(
                agent,
                id,
                range.end(),
                &[run(range, VisitState::Merged, slot)],
                &[],
            )
        });
    });
}

/// The digests that the honest pair's pages would have in the attacker's domain, and other bytes to go with them,
/// which change while the daemon reads.
#[test]
fn lies_about_digests_and_donates_bytes_that_change() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        let salt = agent.salt.unwrap();
        let buffer = agent.descriptors[0].as_fd().try_clone_to_owned().unwrap();
        agent.register(PAGE, 2 * PAGES as u64);
        let digests: Vec<_> = (0..PAGES as u64)
            .map(|page| {
                let bytes = content::page((1 << 32) + page + 1);
                salt.digest(bytes.as_slice().try_into().unwrap())
            })
            .collect();
        let digests = [digests.clone(), digests].concat();
        let changing = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut byte = 0u8;
                while changing.load(std::sync::atomic::Ordering::Relaxed) {
                    byte = byte.wrapping_add(1);
                    for page in 0..DONATION_PAGES as u64 {
                        let at = page * PAGE_SIZE as u64;
                        rustix::io::pwrite(&buffer, &[byte; 64], at).unwrap();
                    }
                }
            });
            follow(field, &mut agent, |agent, id, range| {
                field.deed();
                let first = usize::try_from(range.start - PAGE).unwrap();
                let digests = &digests[first..][..usize::try_from(range.len).unwrap()];
                let runs = [run(range, VisitState::Calm, NOWHERE)];
                visited(agent, id, range.end(), &runs, digests)
            });
            changing.store(false, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

#[test]
fn answers_twice_and_out_of_order() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        // Far apart, so that several visits are out at one time.
        for region in 1..6 {
            agent.register(region << 24, 4);
        }
        let mut kept: Vec<(OrderId, PageRun)> = Vec::new();
        follow(field, &mut agent, |agent, id, range| {
            kept.push((id, range));
            // The others before the first, each twice.
            let due = kept.len() == 5 || agent.hear_would_wait();
            !due || kept.drain(..).rev().all(|(id, range)| {
                field.deed();
                let runs = [run(range, VisitState::Changed, NOWHERE)];
                (0..2).all(|_| visited(agent, id, range.end(), &runs, &[]))
            })
        });
    });
}

#[test]
fn never_answers_and_comes_again() {
    withstand(|field| {
        let mut silent: Vec<_> = (0..16).filter_map(|_| field.join()).collect();
        for agent in &mut silent {
            agent.register(PAGE, 4);
        }
        field.deed();
        let mut looks = 0;
        while !field.is_over() && looks < 100 {
            // Not read, so that orders pile up in the socket.
            std::thread::sleep(LISTEN);
            looks += 1;
        }
    });
}

#[test]
fn answers_late() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        agent.register(PAGE, 4);
        follow(field, &mut agent, |agent, id, range| {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(4500) && !field.is_over() {
                std::thread::sleep(LISTEN);
            }
            field.deed();
            let runs = [run(range, VisitState::Changed, NOWHERE)];
            visited(agent, id, range.end(), &runs, &[])
        });
    });
}

#[test]
fn speaks_for_its_victims() {
    withstand(|field| {
        for pid in field.victims.into_iter().chain([1, field.daemon]) {
            let mut agent = Agent::connect(&field.socket);
            let hello = Hello {
                pid,
                parent: 0,
                birth: Birth::default(),
                versions: Versions::SPOKEN,
                label: Label::default(),
            };
            assert!(agent.offer(&ToDaemon::Hello(hello)));
            // The daemon was started by this very process, but is no parent of it.
            let heard = agent.hear();
            assert!(
                matches!(heard, Heard::Refused(RefusalReason::WrongPid)),
                "{heard:?}"
            );
            // And asks for figures: they are its own, and it has none.
            let mut asking = Agent::connect(&field.socket);
            assert!(asking.offer(&ToDaemon::Query));
            let Heard::Figures(figures) = asking.hear() else {
                panic!("no figures");
            };
            assert_eq!(figures.rmap_items + figures.merging_pages, 0);
            field.deed();
        }
    });
}

/// The merged pages of a process are handed to it read-only, and its donation buffer keeps its size.
#[test]
fn shrinks_and_writes_what_it_was_handed() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        let salt = agent.salt.unwrap();
        let buffer = agent.descriptors[0].as_fd().try_clone_to_owned().unwrap();
        assert_eq!(rustix::fs::ftruncate(&buffer, 0), Err(Errno::PERM));
        let more = rustix::fs::fcntl_add_seals(&buffer, SealFlags::WRITE);
        assert_eq!(more, Err(Errno::PERM));
        agent.register(PAGE, 2);
        let page = [7; PAGE_SIZE];
        let digests = [salt.digest(&page); 2];
        while !field.is_over() {
            let Some(heard) = agent.hear_within(LISTEN) else {
                continue;
            };
            let Heard::Order(id, order) = heard else {
                return;
            };
            let goes_on = match &order {
                Order::Visit { range, .. } => {
                    let first = usize::try_from(range.start - PAGE).unwrap();
                    let digests = &digests[first..][..usize::try_from(range.len).unwrap()];
                    let runs = [run(*range, VisitState::Calm, NOWHERE)];
                    visited(&mut agent, id, range.end(), &runs, digests)
                }
                Order::Donate { .. } => {
                    rustix::io::pwrite(&buffer, &page, 0).unwrap();
                    let goes_on = pretend(field, &mut agent, id, &order);
                    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    let _ = rustix::fs::fallocate(&buffer, punch, 0, PAGE_SIZE as u64);
                    goes_on
                }
                Order::Map { .. } => {
                    attack_arena(&agent.descriptors[0]);
                    field.deed();
                    // Joins anew, or nothing new would be mapped.
                    pretend(field, &mut agent, id, &order);
                    return;
                }
                _ => pretend(field, &mut agent, id, &order),
            };
            if !goes_on {
                return;
            }
        }
    });
}

fn attack_arena(arena: &std::os::fd::OwnedFd) {
    let refused = |result: Result<(), Errno>| {
        assert!(
            matches!(result, Err(Errno::PERM | Errno::BADF | Errno::INVAL)),
            "{result:?}"
        );
    };
    refused(rustix::io::pwrite(arena, b"x", 0).map(|_| ()));
    refused(rustix::fs::ftruncate(arena, 0));
    let path = format!("/proc/self/fd/{}", arena.as_raw_fd());
    let writable = rustix::fs::open(path, OFlags::RDWR, Mode::empty()).expect("root may open it");
    refused(rustix::io::pwrite(&writable, b"x", 0).map(|_| ()));
    refused(rustix::fs::ftruncate(&writable, 0));
    refused(rustix::fs::ftruncate(&writable, 1 << 40));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    refused(rustix::fs::fallocate(&writable, punch, 0, PAGE_SIZE as u64));
    refused(testsuite::sys::map_shared_writable(&writable));
}

/// Children without end, which all are alive and never join.
#[test]
fn forks_in_its_ledger_without_end() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        agent.register(PAGE, 4);
        let buffer = agent.descriptors[0].as_fd().try_clone_to_owned().unwrap();
        let pids = [std::process::id().to_ne_bytes(); CHILDREN as usize];
        let at = LEDGER_OFFSET + offset_of!(Ledger, children) as u64;
        rustix::io::pwrite(&buffer, pids.as_flattened(), at).unwrap();
        let mut forks = 0u32;
        follow_bumping(field, &mut agent, || {
            forks = forks.wrapping_add(7919);
            let at = LEDGER_OFFSET + offset_of!(Ledger, forks) as u64;
            rustix::io::pwrite(&buffer, &forks.to_ne_bytes(), at).unwrap();
            field.deed();
        });
    });
}

fn follow_bumping(field: &Field, agent: &mut Agent, mut bump: impl FnMut()) {
    while !field.is_over() {
        bump();
        match agent.hear_within(Duration::from_millis(1)) {
            None => {}
            Some(Heard::Order(id, Order::Visit { range, .. })) => {
                let runs = [run(range, VisitState::Changed, NOWHERE)];
                visited(agent, id, range.end(), &runs, &[]);
            }
            Some(Heard::Order(id, order)) => {
                pretend(field, agent, id, &order);
            }
            Some(_) => return,
        }
    }
}
