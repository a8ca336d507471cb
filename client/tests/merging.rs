//! Orders to map, zero, remap, donate and unmerge, one at a time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_client::agent::REST;
use ksm_client::space::release::Release;
use ksm_engine::order::{MapRun, OrderRef, Outcome, VisitState};
use ksm_engine::page::{ArenaId, PAGE_SIZE, PageRun};
use rig::sys::Memory;
use rig::{Arena, Rig, page};
use rustix::mm::{Advice, MprotectFlags};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const DONE: Outcome = Outcome::Done;

#[test]
fn equal_pages_are_mapped_and_read_as_before() {
    let mut rig = Rig::new();
    let memory = rig.memory(200, page);
    let arena = Arena::new(1, 200, page);
    rig.merge(&memory, &arena);
    for i in 0..200 {
        assert!(memory.is_shared(i), "page {i} is still private");
        assert_eq!(memory.read(i), page(i));
    }
    assert_eq!(rig.space.figures().pages(DONE), 200);
}

#[test]
fn unequal_pages_stay_as_they_are_and_their_neighbours_merge() {
    let mut rig = Rig::new();
    let memory = rig.memory(10, page);
    memory.write_byte(4, PAGE_SIZE - 1, 0xAA);
    let arena = Arena::new(1, 10, page);
    let outcomes = rig.map(&memory, 0, 10, &arena, 0);
    for (i, outcome) in outcomes.iter().enumerate() {
        let want = if i == 4 { Outcome::Changed } else { DONE };
        assert_eq!(*outcome, want, "page {i}");
    }
    assert!(!memory.is_shared(4));
    assert_eq!(memory.read(4)[PAGE_SIZE - 1], 0xAA);
    assert_eq!(memory.read(4)[..PAGE_SIZE - 1], page(4)[..PAGE_SIZE - 1]);
    // And nothing waits on the page that was left.
    memory.write(4, &page(99));
    assert_eq!(memory.read(4), page(99));
}

#[test]
fn a_write_after_the_merge_is_private() {
    let mut rig = Rig::new();
    let first = rig.memory(4, page);
    let second = rig.memory(4, page);
    let arena = Arena::new(1, 4, page);
    rig.merge(&first, &arena);
    rig.merge(&second, &arena);
    first.write(2, &page(50));
    assert_eq!(first.read(2), page(50));
    assert_eq!(second.read(2), page(2));
    let mut bytes = [0; PAGE_SIZE];
    rustix::io::pread(&arena.fd, &mut bytes, 2 * PAGE_SIZE as u64).unwrap();
    assert_eq!(bytes, page(2));
}

#[test]
fn what_is_not_registered_is_not_touched() {
    let mut rig = Rig::new();
    let memory = rig.memory(8, page);
    rig.space
        .unregister(memory.part(3, 2), Release::Forget)
        .unwrap();
    let arena = Arena::new(1, 8, page);
    let outcomes = rig.map(&memory, 0, 8, &arena, 0);
    let no = Outcome::Unsuitable;
    assert_eq!(outcomes, [DONE, DONE, DONE, no, no, DONE, DONE, DONE]);
    assert!(!memory.is_shared(3));
}

#[test]
fn our_own_memory_is_never_registered() {
    let rig = Rig::new();
    let memory = Memory::map(16);
    rig.space.add_own_range(memory.part(4, 4)).unwrap();
    rig.space.register(memory.run()).unwrap();
    assert!(!rig.space.is_registered(memory.part(4, 1)));
    assert!(rig.space.is_registered(memory.part(0, 4)));
    assert!(rig.space.is_registered(memory.part(8, 8)));
    // Declared later, it goes.
    rig.space.add_own_range(memory.part(12, 2)).unwrap();
    assert_eq!(
        rig.space.first_registered(memory.part(12, 4)),
        Some(memory.part(14, 2))
    );
}

#[test]
fn an_arena_that_could_change_or_shrink_is_refused() {
    let mut rig = Rig::new();
    let memory = rig.memory(2, page);
    let unsealed = Arena {
        id: ArenaId(1),
        fd: Arena::unsealed(2, page),
    };
    assert_eq!(rig.map(&memory, 0, 2, &unsealed, 0), [Outcome::Failed; 2]);
    // Too small for the slots that are ordered.
    let small = Arena::new(1, 1, page);
    assert_eq!(rig.map(&memory, 0, 2, &small, 0), [Outcome::Failed; 2]);
    assert!(!memory.is_shared(0));
}

#[test]
fn mappings_that_are_not_plain_are_left_alone() {
    let mut rig = Rig::new();
    let arena = Arena::new(1, 4, page);
    let none = rig.memory(4, page);
    none.protect(MprotectFlags::empty());
    assert_eq!(rig.map(&none, 0, 4, &arena, 0), [Outcome::Unsuitable; 4]);
    none.protect(MprotectFlags::READ | MprotectFlags::WRITE);
    assert_eq!(none.read(3), page(3));
    let gone = rig.memory(4, page);
    gone.advise(1, 2, Advice::LinuxDontNeed);
    let outcomes = rig.map(&gone, 0, 4, &arena, 0);
    assert_eq!(outcomes, [DONE, Outcome::Gone, Outcome::Gone, DONE]);
    assert_eq!(gone.read(1), [0; PAGE_SIZE]);
}

#[test]
fn a_run_across_mappings_merges() {
    let mut rig = Rig::new();
    let memory = rig.memory(64, page);
    // Made mappings of their own: two pages differ in an advice that splits.
    memory.advise(10, 2, Advice::LinuxDontFork);
    memory.advise(40, 1, Advice::LinuxDontDump);
    let arena = Arena::new(1, 64, page);
    rig.merge(&memory, &arena);
    for i in 0..64 {
        assert_eq!(memory.read(i), page(i));
    }
}

#[test]
fn an_unmerge_waits_for_an_app_that_is_in_the_way() {
    let mut rig = Rig::new();
    let memory = rig.memory(8, page);
    let arena = Arena::new(1, 8, page);
    rig.merge(&memory, &arena);
    let (space, all) = (rig.space, memory.run());
    let (tell, told) = std::sync::mpsc::channel();
    let app = std::thread::spawn(move || {
        let held = space.hold_off();
        tell.send(()).unwrap();
        std::thread::sleep(2 * ksm_client::space::PATIENCE);
        drop(held);
    });
    told.recv().unwrap();
    assert_eq!(rig.unmerge(all), all.end());
    app.join().unwrap();
    assert!(!memory.is_shared(3));
}

#[test]
fn pages_of_a_huge_page_merge() {
    let mut rig = Rig::new();
    let memory = Memory::map(1536);
    memory.advise(0, 1536, Advice::LinuxHugepage);
    let first =
        usize::try_from(memory.run().start.next_multiple_of(512) - memory.run().start).unwrap();
    for i in first..first + 512 {
        memory.write(i, &page(i));
    }
    // A busy machine has no huge page at once, and one sooner or later.
    let begin = Instant::now();
    let patience = Duration::from_secs(240);
    while !memory.is_huge(first) {
        memory.try_collapse(first, 512);
        assert!(begin.elapsed() < patience, "no huge page is to be had here");
    }
    rig.space.register(memory.run()).unwrap();
    let arena = Arena::new(1, 1536, page);
    let slot = u32::try_from(first).unwrap() + 100;
    // The kernel splits no huge page that somebody looks at just then (DAMON, compaction): the engine orders it again.
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let outcomes = rig.map(&memory, first + 100, 200, &arena, slot);
        if outcomes.iter().all(|o| *o == DONE) {
            break;
        }
        assert!(Instant::now() < deadline, "{outcomes:?}");
    }
    for i in first..first + 512 {
        assert_eq!(memory.read(i), page(i), "page {i}");
    }
}

#[test]
fn unmerged_pages_are_plain_memory_that_merges_again() {
    let mut rig = Rig::new();
    let memory = rig.memory(300, page);
    let arena = Arena::new(1, 300, page);
    rig.merge(&memory, &arena);
    memory.write(7, &page(1000));
    assert_eq!(rig.unmerge(memory.run()), memory.run().end());
    for i in 0..300 {
        assert!(!memory.is_shared(i), "page {i} is still merged");
        let want = if i == 7 { page(1000) } else { page(i) };
        assert_eq!(memory.read(i), want);
    }
    // Two visits find all of them calm; only the one that was broken cannot be moved.
    let _ = rig.visit(memory.run());
    let states = rig.states(memory.run());
    for (i, state) in states.iter().enumerate() {
        // The one that was broken may have been pinned since.
        let fine = match state {
            VisitState::CalmKnown => i != 7,
            VisitState::Calm | VisitState::Unsure => i == 7,
            _ => false,
        };
        assert!(fine, "page {i}: {state:?}");
    }
    let outcomes = rig.map(&memory, 8, 292, &arena, 8);
    assert!(outcomes.iter().all(|o| *o == DONE), "{outcomes:?}");
    assert!(memory.is_shared(8));
}

#[test]
fn unregistered_pages_are_private_when_the_call_returns() {
    let mut rig = Rig::new();
    for userfaults in [true, false] {
        let memory = rig.memory(100, page);
        let arena = Arena::new(1, 100, page);
        rig.merge(&memory, &arena);
        let userfaults = userfaults.then_some(&rig.userfaults);
        rig.space
            .unregister(memory.part(10, 80), Release::Unmerge(userfaults))
            .unwrap();
        for i in 0..100 {
            assert_eq!(memory.read(i), page(i));
            assert_eq!(memory.is_shared(i), !(10..90).contains(&i), "page {i}");
        }
        // Discarding works on whatever is there now.
        rig.space.discard(memory.part(50, 50)).unwrap();
        for i in 0..100 {
            let want = if i < 50 { page(i) } else { [0; PAGE_SIZE] };
            assert_eq!(memory.read(i), want, "page {i}");
        }
        rig.space.unregister(memory.run(), Release::Forget).unwrap();
    }
}

#[test]
fn memory_that_took_the_place_of_merged_pages_with_the_same_bytes_is_calm_at_once() {
    let mut rig = Rig::new();
    let memory = rig.memory(10, page);
    let arena = Arena::new(1, 10, page);
    let _ = rig.visit(memory.run());
    rig.merge(&memory, &arena);
    memory.replace_behind_our_back();
    for i in 0..10 {
        memory.write(i, &page(i + usize::from(i == 3)));
    }
    for (i, state) in rig.states(memory.run()).into_iter().enumerate() {
        let want = if i == 3 {
            VisitState::Changed
        } else {
            VisitState::Calm
        };
        assert_eq!(state, want, "page {i}");
    }
    assert_eq!(rig.map(&memory, 0, 3, &arena, 0), [DONE; 3]);
}

#[test]
fn memory_that_took_the_place_of_merged_pages_behind_our_back_merges_as_any_other() {
    let mut rig = Rig::new();
    let memory = rig.memory(10, page);
    let arena = Arena::new(1, 10, page);
    rig.merge(&memory, &arena);
    memory.replace_behind_our_back();
    for i in 0..10 {
        memory.write(i, &page(i));
    }
    assert_eq!(rig.states(memory.run()), [VisitState::Changed; 10]);
    assert_eq!(rig.states(memory.run()), [VisitState::Calm; 10]);
    rig.merge(&memory, &arena);
}

#[test]
fn discarded_pages_read_as_zero_merged_or_not() {
    let mut rig = Rig::new();
    let memory = rig.memory(20, page);
    let arena = Arena::new(1, 20, page);
    let outcomes = rig.map(&memory, 4, 12, &arena, 4);
    assert_eq!(outcomes, [DONE; 12]);
    memory.write(6, &page(77));
    memory.protect(MprotectFlags::READ);
    rig.space.discard(memory.part(2, 12)).unwrap();
    for i in 0..20 {
        let want = if (2..14).contains(&i) {
            [0; PAGE_SIZE]
        } else {
            page(i)
        };
        assert_eq!(memory.read(i), want, "page {i}");
    }
    // The protection that the app gave it is still there: the kernel refuses to write through it.
    let pipe = rustix::pipe::pipe().unwrap();
    rustix::io::write(&pipe.1, &[1]).unwrap();
    assert_eq!(
        rig::sys::read_into(&pipe.0, memory.pointer(5), 1),
        Err(libc::EFAULT)
    );
    memory.protect(MprotectFlags::READ | MprotectFlags::WRITE);
    memory.write(5, &page(5));
    let _ = rig.visit(memory.run());
    assert_eq!(rig.map(&memory, 5, 1, &arena, 5), [DONE]);
}

#[test]
fn zero_pages_take_no_memory_and_are_counted_while_they_last() {
    let mut rig = Rig::new();
    let memory = rig.memory(70, |i| if i == 3 { page(3) } else { [0; PAGE_SIZE] });
    let order = OrderRef::Zero {
        runs: &[memory.run()],
    };
    let outcomes = rig.outcomes(&order, None);
    for (i, outcome) in outcomes.iter().enumerate() {
        let want = if i == 3 { Outcome::Changed } else { DONE };
        assert_eq!(*outcome, want, "page {i}");
    }
    let (_, pages, _, zeroes) = rig.visit_with(memory.run(), 2048, &[]);
    assert_eq!(pages, [(3, VisitState::Calm, None)]);
    assert_eq!(zeroes, 69);
    memory.write(10, &page(10));
    assert_eq!(memory.read(10), page(10));
    assert_eq!(memory.read(11), [0; PAGE_SIZE]);
    let (.., zeroes) = rig.visit_with(memory.run(), 2048, &[]);
    assert_eq!(zeroes, 68);
}

#[test]
fn donated_pages_arrive_in_order_and_holes_are_said() {
    let mut rig = Rig::new();
    let memory = rig.memory(80, page);
    memory.unmap(70, 1);
    let runs = [memory.part(66, 8), memory.part(1, 3)];
    let outcomes = rig.outcomes(&OrderRef::Donate { runs: &runs }, None);
    let mut want = [DONE; 11];
    want[4] = Outcome::Gone;
    assert_eq!(outcomes, want);
    let pages = [66, 67, 68, 69, 70, 71, 72, 73, 1, 2, 3];
    for (place, i) in pages.into_iter().enumerate().filter(|(_, i)| *i != 70) {
        let mut bytes = [0; PAGE_SIZE];
        rustix::io::pread(&rig.donation, &mut bytes, (place * PAGE_SIZE) as u64).unwrap();
        assert_eq!(bytes, page(i), "place {place}");
    }
}

#[test]
fn unbroken_pages_are_remapped_and_broken_ones_left() {
    let mut rig = Rig::new();
    let memory = rig.memory(20, page);
    let old = Arena::new(1, 20, page);
    rig.merge(&memory, &old);
    memory.write(5, &page(500));
    let new = Arena::new(2, 20, |i| if i == 9 { page(900) } else { page(i) });
    let outcomes = rig.remap(&memory, &new);
    for (i, outcome) in outcomes.iter().enumerate() {
        let want = if i == 5 || i == 9 {
            Outcome::Changed
        } else {
            DONE
        };
        assert_eq!(*outcome, want, "page {i}");
        let bytes = if i == 5 { page(500) } else { page(i) };
        assert_eq!(memory.read(i), bytes);
    }
    for (i, state, slot) in rig.visit(memory.run()) {
        let arena = if i == 9 { 1 } else { 2 };
        if i == 5 {
            assert_eq!(state, VisitState::Changed);
        } else {
            let slot = slot.expect("merged");
            assert_eq!((slot.arena.0, u64::from(slot.index)), (arena, i));
        }
    }
}

#[test]
fn a_broken_page_merges_again_in_one_scan_and_after_a_rest_where_there_are_no_pins() {
    let mut rig = Rig::new();
    let memory = rig.memory(3, page);
    let arena = Arena::new(1, 3, page);
    let _ = rig.visit(memory.run());
    let _ = rig.visit(memory.run());
    rig.merge(&memory, &arena);
    // The same bytes: calm at once.
    memory.write(1, &page(1));
    let broken = Instant::now();
    let (_, pages, digests, _) = rig.visit_with(memory.run(), 2048, &[]);
    let states: Vec<_> = pages.iter().map(|(_, state, _)| *state).collect();
    assert_eq!(
        states,
        [VisitState::Merged, VisitState::Calm, VisitState::Merged]
    );
    assert_eq!(digests, [rig::SALT.digest(&page(1))]);
    assert_eq!(rig.map(&memory, 1, 1, &arena, 1), [DONE]);
    // Another process may have been at it when it was seen.
    assert!(
        broken.elapsed() >= REST,
        "merged after {:?}",
        broken.elapsed()
    );
    memory.write(1, &page(1));
    let _ = rig.visit(memory.run());
    let direct = rig::direct_file(1, page);
    assert_eq!(
        rig.map(&memory, 1, 1, &arena, 1),
        [Outcome::Unsure],
        "there may be direct I/O"
    );
    assert_eq!(rig.states(memory.run())[1], VisitState::Unsure);
    drop(direct);
    assert_eq!(rig.map(&memory, 1, 1, &arena, 1), [DONE]);
    assert!(memory.is_shared(1));
    assert_eq!(memory.read(1), page(1));
}

#[test]
fn the_last_quarter_of_all_mappings_is_the_apps() {
    // A process of its own: other tests of this one make and unmake mappings, too.
    let fine = rig::sys::in_fork(|| {
        let mut rig = Rig::new();
        let limit = ksm_client::sys::maps::limit().unwrap();
        let maps = ksm_client::sys::maps::Maps::open().unwrap();
        let fill = |_| page(1);
        let pages = limit / 2;
        let memory = rig.memory(pages, fill);
        let arena = Arena::new(1, 1, fill);
        let mut refused = 0;
        for first in (0..pages).step_by(1024) {
            // Every second page, all to one slot: two mappings each.
            let runs: Vec<_> = (first..pages.min(first + 1024))
                .step_by(2)
                .map(|i| MapRun {
                    start: memory.run().start + i as u64,
                    len: 1,
                    slot: 0,
                })
                .collect();
            let order = OrderRef::Map {
                arena: arena.id,
                runs: &runs,
            };
            let outcomes = rig.outcomes(&order, Some(&arena));
            refused += outcomes.iter().filter(|o| **o == Outcome::NoMaps).count();
        }
        // Not enough to reach the limit yet; single pages of a second region are.
        let second = rig.memory(pages, fill);
        for first in (0..pages).step_by(1024) {
            let runs: Vec<_> = (first..pages.min(first + 1024))
                .step_by(2)
                .map(|i| MapRun {
                    start: second.run().start + i as u64,
                    len: 1,
                    slot: 0,
                })
                .collect();
            let order = OrderRef::Map {
                arena: arena.id,
                runs: &runs,
            };
            let outcomes = rig.outcomes(&order, Some(&arena));
            refused += outcomes.iter().filter(|o| **o == Outcome::NoMaps).count();
        }
        let count = maps.count().unwrap();
        refused > 0 && count <= limit - limit / 4 && count > limit / 2
    });
    assert!(fine);
}

#[test]
fn a_stopped_app_inside_a_call_makes_the_agent_say_busy() {
    let mut rig = Rig::new();
    let memory = rig.memory(200, page);
    let arena = Arena::new(1, 200, page);
    let held = rig.space.hold_off();
    // It comes back at all: an agent that waited for the app would wait for ever.
    assert_eq!(rig.map(&memory, 0, 200, &arena, 0), [Outcome::Busy; 200]);
    drop(held);
    rig.merge(&memory, &arena);
}

#[test]
fn the_apps_own_userfaultfd_comes_first() {
    let mut rig = Rig::new();
    let memory = rig.memory(4, page);
    let device = rustix::fs::open(
        c"/dev/userfaultfd",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let theirs = ksm_client::sys::uffd::Userfaults::new(Some(device.as_fd())).unwrap();
    theirs
        .moving
        .register_quarantine(memory.part(1, 1))
        .unwrap();
    let arena = Arena::new(1, 4, page);
    let outcomes = rig.map(&memory, 0, 4, &arena, 0);
    assert_eq!(outcomes, [Outcome::Claimed; 4]);
    // Theirs is still in force.
    assert_eq!(rig.map(&memory, 1, 1, &arena, 1), [Outcome::Claimed]);
    assert_eq!(rig.map(&memory, 2, 2, &arena, 2), [DONE; 2]);
    drop(theirs);
    // A child that a test beside this one forks has it open as well, until it ends.
    let mut outcomes = rig.map(&memory, 0, 2, &arena, 0);
    for _ in 0..6000 {
        if outcomes != [Outcome::Claimed; 2] {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        outcomes = rig.map(&memory, 0, 2, &arena, 0);
    }
    assert_eq!(outcomes, [DONE; 2]);
}

#[test]
fn pages_of_an_earlier_daemon_are_foreign_until_remapped() {
    let mut rig = Rig::new();
    let memory = rig.memory(4, page);
    let old = Arena::new(1, 4, page);
    rig.merge(&memory, &old);
    assert!(rig.space.on_reconnect());
    assert_eq!(rig.states(memory.run()), [VisitState::Foreign; 4]);
    let new = Arena::new(1, 4, page);
    assert_eq!(rig.remap(&memory, &new), [DONE; 4]);
    assert_eq!(rig.states(memory.run()), [VisitState::Merged; 4]);
    let regions = rig.notices();
    assert!(regions.len() >= 2, "everything is told again: {regions:?}");
    let _: PageRun = memory.run();
}

/// The app may be watching for the first access to them.
#[test]
fn pages_that_are_not_there_are_not_looked_at_to_be_donated() {
    let mut rig = Rig::new();
    let memory = rig.memory(4, page);
    memory.advise(1, 2, Advice::LinuxDontNeed);
    let absent = |memory: &Memory| -> Vec<bool> {
        let entries = memory.pagemap();
        entries.iter().map(|entry| entry >> 63 == 0).collect()
    };
    assert_eq!(absent(&memory), [false, true, true, false]);
    let runs = [memory.run()];
    let outcomes = rig.outcomes(&OrderRef::Donate { runs: &runs }, None);
    assert_eq!(outcomes, [DONE, Outcome::Gone, Outcome::Gone, DONE]);
    assert_eq!(absent(&memory), [false, true, true, false]);
}
