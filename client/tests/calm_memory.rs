//! Calm memory is summed up, and not read, until it changes, in whatever way it does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use VisitState::{Calm, CalmKnown, Changed, Merged};
use ksm_client::space::PATIENCE;
use ksm_client::space::release::Release;
use ksm_client::sys::remap::AppPages;
use ksm_client::sys::uffd::{Userfaults, Wait};
use ksm_engine::order::{Outcome, VisitState};
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rig::sys::{FixedBuffer, Memory, in_fork, pread_into};
use rig::{Arena, Rig, page};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mm::Advice;
use std::os::fd::AsFd;

/// Several chunks, and parts of two.
const PAGES: usize = 2100;
/// More scans than there are chunks one after another that may be due to be read.
const SOME: usize = 10;
/// More scans than it takes to read every chunk once.
const ROUNDS: usize = 70;

/// Memory that a visit says nothing new of.
fn calm(rig: &mut Rig) -> Memory {
    let memory = rig.memory(PAGES, page);
    for _ in 0..3 {
        rig.visit(memory.run());
    }
    rig.visit(memory.part(2048, 52));
    assert_is_quiet(rig, &memory);
    memory
}

/// Not in every scan, for a part of it is read whatever happened.
fn assert_is_quiet(rig: &mut Rig, memory: &Memory) {
    let quiet = (0..SOME).any(|_| rig.news(memory.run()) == (PAGES as u64, vec![]));
    assert!(quiet, "{} pages unchanged", rig.news(memory.run()).0);
}

/// What a visit says of pages that are not as they were, without those beside them.
fn changes(rig: &mut Rig, memory: &Memory) -> Vec<(u64, VisitState)> {
    let (_, news) = rig.news(memory.run());
    news.into_iter()
        .filter(|(_, state)| !matches!(state, CalmKnown | Merged))
        .collect()
}

#[test]
fn memory_that_nobody_writes_to_is_summed_up() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    // An order that wants to know it all gets it, and nothing is read for it.
    assert_eq!(rig.states(memory.part(0, 1000)), [CalmKnown; 1000]);
    assert_is_quiet(&mut rig, &memory);
    // A visit from the middle of a chunk to the middle of another one.
    let part = memory.part(700, 900);
    let quiet = (0..SOME).any(|_| rig.news(part) == (900, vec![]));
    assert!(quiet);
}

#[test]
fn a_write_is_seen_by_whomever_it_is_made() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    memory.write(0, &page(9000));
    memory.write_byte(511, 4095, 77);
    let file = rig::memfd_with(&page(9001));
    pread_into(&file, memory.pointer(512), PAGE_SIZE, 0).unwrap();
    rig::sys::write_from_outside(memory.pointer(1500), &page(9002));
    let changed = [0, 511, 512, 1500].map(|page| (page, Changed));
    assert_eq!(changes(&mut rig, &memory), changed);
    let again = [0, 511, 512, 1500].map(|page| (page, Calm));
    assert_eq!(changes(&mut rig, &memory), again);
    rig.visit(memory.run());
    rig.visit(memory.part(2048, 52));
    assert_is_quiet(&mut rig, &memory);
}

#[test]
fn a_write_of_the_bytes_that_were_there_is_no_change_and_ends_the_quiet() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    memory.write(5, &page(5));
    assert_eq!(changes(&mut rig, &memory), []);
    assert_is_quiet(&mut rig, &memory);
}

#[test]
fn pages_that_are_discarded_are_gone_and_come_back_as_others() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    let there = |rig: &mut Rig| {
        let (unchanged, news) = rig.news(memory.run());
        unchanged + news.len() as u64
    };
    memory.advise(3, 1, Advice::LinuxDontNeed);
    assert_eq!(there(&mut rig), PAGES as u64 - 1);
    memory.write(3, &page(9003));
    assert_eq!(changes(&mut rig, &memory), [(3, Calm)]);
    // So many that the kernel can give back a page of the page table.
    memory.advise(0, 2000, Advice::LinuxDontNeed);
    assert_eq!(there(&mut rig), 100);
    memory.write(700, &page(9004));
    assert_eq!(changes(&mut rig, &memory), [(700, Calm)]);
}

#[test]
fn memory_that_is_replaced_or_unmapped_behind_our_back_is_looked_at() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    memory.replace_part(600, 10);
    memory.write(601, &page(9005));
    let (unchanged, news) = rig.news(memory.run());
    assert_eq!(unchanged + news.len() as u64, PAGES as u64 - 9);
    assert!(news.contains(&(601, Changed)), "{news:?}");
    memory.unmap(1100, 30);
    let (unchanged, news) = rig.news(memory.run());
    assert_eq!(unchanged + news.len() as u64, PAGES as u64 - 39);
}

#[test]
fn a_child_that_writes_to_its_copy_changes_nothing_and_the_parent_is_seen() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    rig.space.lock_for_fork();
    let fine = in_fork(|| {
        memory.write(8, &page(9006));
        memory.read(8) == page(9006)
    });
    rig.space.unlock_parent();
    assert!(fine);
    assert_eq!(changes(&mut rig, &memory), []);
    memory.write(9, &page(9007));
    assert_eq!(changes(&mut rig, &memory), [(9, Changed)]);
}

/// What a device writes into a page that it held before the page was protected is seen by nobody, and so is read once in a while.
#[test]
fn what_a_device_writes_is_found_after_some_scans() {
    let mut rig = Rig::new();
    let memory = rig.memory(PAGES, page);
    let ring = FixedBuffer::register(memory.pointer(1000), 1);
    for _ in 0..4 {
        rig.visit(memory.run());
        rig.visit(memory.part(2048, 52));
    }
    ring.read_into(&rig::memfd_with(&page(9008)));
    assert_eq!(memory.read(1000), page(9008));
    let found = (0..ROUNDS).any(|_| changes(&mut rig, &memory) == [(1000, Changed)]);
    assert!(found, "nobody has looked");
}

/// Until then it is taken for what it was, and the comparison that comes before every merge finds out.
#[test]
fn a_page_that_changed_unseen_is_not_merged_with_what_it_was() {
    let mut rig = Rig::new();
    let memory = rig.memory(4, page);
    let arena = Arena::new(1, 4, page);
    let ring = FixedBuffer::register(memory.pointer(1), 1);
    for _ in 0..4 {
        rig.visit(memory.run());
    }
    ring.read_into(&rig::memfd_with(&page(9009)));
    let outcomes = rig.map(&memory, 0, 4, &arena, 0);
    assert_ne!(outcomes[1], Outcome::Done);
    assert_eq!(memory.read(1), page(9009));
    assert_eq!([outcomes[0], outcomes[2]], [Outcome::Done; 2]);
}

#[test]
fn calm_pages_merge_and_merged_ones_are_summed_up_until_they_are_written() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    let arena = Arena::new(1, PAGES, page);
    let outcomes = rig.map(&memory, 0, 2048, &arena, 0);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done));
    let outcomes = rig.map(&memory, 2048, 52, &arena, 2048);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done));
    for i in 0..PAGES {
        assert_eq!(memory.read(i), page(i));
    }
    rig.visit(memory.run());
    rig.visit(memory.part(2048, 52));
    assert_eq!(rig.news(memory.run()), (PAGES as u64, vec![]));
    memory.write(100, &page(9010));
    memory.write_byte(1999, 0, memory.read(1999)[0] ^ 1);
    assert_eq!(
        changes(&mut rig, &memory),
        [(100, Changed), (1999, Changed)]
    );
    assert_eq!(memory.read(100), page(9010));
    // Discarded past us, it shows its slot.
    memory.advise(100, 1, Advice::LinuxDontNeed);
    assert_eq!(changes(&mut rig, &memory), [(1999, Calm)]);
    assert_eq!(memory.read(100), page(100));
}

/// A userfaultfd of the app's own.
fn own_userfaults() -> Userfaults {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = open(c"/dev/userfaultfd", flags, Mode::empty()).unwrap();
    Userfaults::new(Some(device.as_fd())).unwrap()
}

/// The first of the registered pages.
fn pages(rig: &Rig, run: PageRun) -> AppPages {
    rig.space.step(PATIENCE).unwrap().registered(run).unwrap()
}

#[test]
fn the_app_can_register_what_it_takes_back() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    let own = own_userfaults();
    let all = pages(&rig, memory.run());
    let claim = || own.protecting.register(all, Wait::Protected);
    assert_eq!(claim(), Err(Errno::BUSY));
    let release = Release::Unmerge(Some(&rig.userfaults));
    rig.space.unregister(memory.run(), release).unwrap();
    assert_eq!(claim(), Ok(()));
}

#[test]
fn the_app_can_register_what_is_watched_if_it_is_seen_to_and_is_believed_then() {
    let mut rig = Rig::new();
    let memory = calm(&mut rig);
    let own = own_userfaults();
    let all = pages(&rig, memory.run());
    let mut change = rig.space.change();
    change.end_tracking(&rig.userfaults, memory.run());
    // Asynchronous, as ours: what it says of its protection is not what we want to know.
    own.moving.register(all, Wait::Written).unwrap();
    drop(change);
    own.moving.protect(all).unwrap();
    memory.write(70, &page(9011));
    own.moving.protect(all).unwrap();
    for _ in 0..3 {
        let (unchanged, _) = rig.news(memory.run());
        assert_eq!(unchanged, 0);
    }
    memory.write(71, &page(9012));
    own.moving.protect(all).unwrap();
    assert_eq!(changes(&mut rig, &memory), [(71, Changed)]);
}
