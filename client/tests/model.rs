//! Whatever an app and an engine do, in whatever order: the memory is what an array would be.
//!
//! Generated calls of the app, orders, forks and changes of agent, on a few pages; after each of them every byte is compared
//! with the array, and what the agent says with what it may say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_client::space::release::Release;
use ksm_engine::order::{OrderRef, Outcome, VisitState};
use ksm_engine::page::{PAGE_SIZE, PageBytes};
use proptest::prelude::*;
use rig::sys::{Memory, in_fork};
use rig::{Arena, Rig, page};
use std::collections::BTreeSet;

const PAGES: usize = 20;

/// Consecutive pages of the memory.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: usize,
    len: usize,
}

impl Part {
    fn pages(self) -> std::ops::Range<usize> {
        self.first..self.first + self.len
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The app fills pages with one of their contents; 0 is all zero.
    Fill(Part, usize),
    WriteByte(usize, usize, u8),
    Discard(Part),
    Register(Part),
    Unmergeable(Part, bool),
    /// Unmaps the pages and maps new ones, as it must be done.
    Replace(Part),
    Fork(Part),
    Visit,
    /// With one of the arenas; to the slots of one of the contents.
    Map(Part, usize, usize),
    Remap(usize),
    Zero(Part),
    Unmerge(Part),
    AnotherDaemon,
    AnotherAgent,
}

fn part() -> impl Strategy<Value = Part> {
    (0..PAGES, 1..=PAGES).prop_map(|(first, len)| Part {
        first,
        len: len.min(PAGES - first),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (part(), 0..3_usize).prop_map(|(part, k)| Step::Fill(part, k)),
        3 => (0..PAGES, 0..PAGE_SIZE, any::<u8>()).prop_map(|(i, at, byte)| Step::WriteByte(i, at, byte)),
        2 => part().prop_map(Step::Discard),
        3 => part().prop_map(Step::Register),
        2 => (part(), any::<bool>()).prop_map(|(part, with)| Step::Unmergeable(part, with)),
        1 => part().prop_map(Step::Replace),
        1 => part().prop_map(Step::Fork),
        4 => Just(Step::Visit),
        8 => (part(), 0..2_usize, 1..3_usize).prop_map(|(part, arena, k)| Step::Map(part, arena, k)),
        2 => (0..2_usize).prop_map(Step::Remap),
        2 => part().prop_map(Step::Zero),
        1 => part().prop_map(Step::Unmerge),
        1 => Just(Step::AnotherDaemon),
        1 => Just(Step::AnotherAgent),
    ]
}

fn content(i: usize, k: usize) -> PageBytes {
    match k {
        0 => [0; PAGE_SIZE],
        1 => page(i),
        _ => page(i + 1000),
    }
}

/// Slots 0.. have the first content of each page, the slots after them the second one.
fn slot_content(slot: usize) -> PageBytes {
    content(slot % PAGES, 1 + slot / PAGES)
}

struct World {
    rig: Rig,
    memory: Memory,
    arenas: [Arena; 2],
    model: Vec<PageBytes>,
    registered: BTreeSet<usize>,
}

impl World {
    fn new() -> Self {
        Self {
            rig: Rig::new(),
            memory: Memory::map(PAGES),
            arenas: [1, 2].map(|id| Arena::new(id, 2 * PAGES, slot_content)),
            model: vec![[0; PAGE_SIZE]; PAGES],
            registered: BTreeSet::new(),
        }
    }

    fn run(&self, part: Part) -> ksm_engine::page::PageRun {
        self.memory.part(part.first as u64, part.len as u64)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Fill(part, k) => {
                for i in part.pages() {
                    self.memory.write(i, &content(i, k));
                    self.model[i] = content(i, k);
                }
            }
            Step::WriteByte(i, at, byte) => {
                self.memory.write_byte(i, at, byte);
                self.model[i][at] = byte;
            }
            Step::Discard(part) => {
                self.rig.space.discard(self.run(part)).unwrap();
                self.zero_model(part);
            }
            Step::Register(part) => {
                self.rig.space.register(self.run(part)).unwrap();
                self.registered.extend(part.pages());
            }
            Step::Unmergeable(part, with) => {
                let userfaults = with.then_some(&self.rig.userfaults);
                let run = self.run(part);
                self.rig
                    .space
                    .unregister(run, Release::Unmerge(userfaults))
                    .unwrap();
                self.registered.retain(|i| !part.pages().contains(i));
                for i in part.pages() {
                    assert!(!self.memory.is_shared(i), "page {i} is still merged");
                }
            }
            Step::Replace(part) => {
                self.rig
                    .space
                    .unregister(self.run(part), Release::Forget)
                    .unwrap();
                self.registered.retain(|i| !part.pages().contains(i));
                self.memory.replace_part(part.first, part.len);
                self.zero_model(part);
            }
            Step::Fork(part) => {
                let space = self.rig.space;
                space.lock_for_fork();
                let fine = in_fork(|| {
                    space.reset_child();
                    let before = (0..PAGES).all(|i| self.memory.read(i) == self.model[i]);
                    space.discard(self.run(part)).unwrap();
                    let zero = part.pages().all(|i| self.memory.read(i) == [0; PAGE_SIZE]);
                    before && zero
                });
                space.unlock_parent();
                assert!(fine, "the child saw something else");
            }
            Step::Visit => self.visit(),
            Step::Map(part, arena, k) => self.map(part, arena, k),
            Step::Remap(arena) => {
                // Another arena with the same bytes: what is merged stays what it is.
                let arena = &self.arenas[arena];
                self.rig.remap(&self.memory, arena);
            }
            Step::Zero(part) => {
                let runs = [self.run(part)];
                let outcomes = self.rig.outcomes(&OrderRef::Zero { runs: &runs }, None);
                for (i, outcome) in part.pages().zip(outcomes) {
                    if outcome == Outcome::Done {
                        assert_eq!(self.model[i], [0; PAGE_SIZE], "page {i} was not zero");
                        assert!(self.registered.contains(&i));
                    }
                }
            }
            Step::Unmerge(part) => {
                let run = self.run(part);
                assert_eq!(self.rig.unmerge(run), run.end());
                for i in part.pages() {
                    assert!(!self.memory.is_shared(i), "page {i} is still merged");
                }
            }
            Step::AnotherDaemon => assert!(self.rig.space.on_reconnect()),
            Step::AnotherAgent => self.rig.replace_agent(),
        }
    }

    fn zero_model(&mut self, part: Part) {
        for i in part.pages() {
            self.model[i] = [0; PAGE_SIZE];
        }
    }

    fn map(&mut self, part: Part, arena: usize, k: usize) {
        let slot = (k - 1) * PAGES + part.first;
        let count = u32::try_from(part.len).unwrap();
        let arena = &self.arenas[arena];
        let outcomes = self.rig.map(
            &self.memory,
            part.first,
            count,
            arena,
            u32::try_from(slot).unwrap(),
        );
        assert_eq!(outcomes.len(), part.len);
        for (i, outcome) in part.pages().zip(outcomes) {
            match outcome {
                Outcome::Done => {
                    assert_eq!(
                        self.model[i],
                        content(i, k),
                        "page {i} was merged with other bytes"
                    );
                    assert!(self.registered.contains(&i), "page {i} is not ours");
                    assert!(self.memory.is_shared(i));
                }
                Outcome::Unsuitable => assert!(!self.registered.contains(&i), "page {i}"),
                Outcome::Changed | Outcome::Gone | Outcome::Unsure => {}
                other => panic!("page {i}: {other:?}"),
            }
        }
    }

    fn visit(&mut self) {
        let (end, pages, ..) = self.rig.visit_with(self.memory.run(), 2048, &[]);
        assert_eq!(end, self.memory.run().end());
        for (i, state, slot) in pages {
            let i = usize::try_from(i).unwrap();
            assert!(self.registered.contains(&i), "page {i} is not ours");
            match state {
                VisitState::Merged => {
                    let slot = usize::try_from(slot.unwrap().index).unwrap();
                    assert_eq!(
                        self.model[i],
                        slot_content(slot),
                        "page {i} does not show its slot"
                    );
                }
                VisitState::Foreign => assert!(self.memory.is_shared(i)),
                VisitState::CalmZero => assert_eq!(self.model[i], [0; PAGE_SIZE]),
                _ => {}
            }
        }
    }

    fn check(&self) {
        for (i, bytes) in self.model.iter().enumerate() {
            assert!(
                self.memory.read(i) == *bytes,
                "page {i} reads something else"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_what_an_array_would_be(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}
