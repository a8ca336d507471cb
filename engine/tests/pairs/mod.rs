//! An agent whose pages are equal in pairs, and which does all that it is told.

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::Engine;
use ksm_engine::order::{
    Donation, MapRun, Order, OrderId, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, DomainId, MmId, PAGE_SIZE, PageBytes, PageRun, Slot, UserId};
use std::collections::{BTreeMap, BTreeSet};

const START: u64 = 16;

pub struct Pairs {
    pub mm: MmId,
    domain: DomainId,
    /// What the first pair holds. The others follow.
    first: u64,
    slots: BTreeMap<u64, Slot>,
    /// Pages that have been looked at since they were filled.
    seen: BTreeSet<u64>,
}

/// Copies of the pages of an order.
struct Copies(Vec<PageBytes>);

impl Donation for Copies {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        into.copy_from_slice(&self.0[first..][..into.len()]);
    }
}

impl Pairs {
    pub fn join(
        engine: &mut Engine<MemfdStore>,
        domain: DomainId,
        user: UserId,
        pairs: u64,
    ) -> Self {
        let mm = engine.add_mm_of(domain, user).unwrap();
        let range = PageRun {
            start: START,
            len: 2 * pairs,
        };
        engine.register(mm, range);
        Self {
            mm,
            domain,
            first: 1,
            slots: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Writes to all pages.
    pub fn fill(&mut self, first: u64) {
        self.first = first;
        self.slots.clear();
        self.seen.clear();
    }

    pub fn merged(&self) -> usize {
        self.slots.len()
    }

    fn bytes(&self, page: u64) -> PageBytes {
        let mut bytes = [0; PAGE_SIZE];
        bytes[..8].copy_from_slice(&(self.first + (page - START) / 2).to_le_bytes());
        bytes
    }

    pub fn follow(&mut self, engine: &mut Engine<MemfdStore>, id: OrderId, order: &Order) {
        match order {
            Order::Visit { range, limit, .. } => self.visit(engine, id, *range, *limit),
            Order::Donate { runs } => {
                let pages = runs.iter().flat_map(|run| run.start..run.end());
                let copies = Copies(pages.map(|page| self.bytes(page)).collect());
                self.done(engine, id, runs, &copies);
            }
            Order::Map { arena, runs } | Order::Remap { arena, runs } => {
                for run in runs {
                    for (index, page) in (run.slot..).zip(run.start..run.pages().end()) {
                        let arena = *arena;
                        self.slots.insert(page, Slot { arena, index });
                    }
                }
                let runs: Vec<_> = runs.iter().map(MapRun::pages).collect();
                self.done(engine, id, &runs, &Copies(Vec::new()));
            }
            other => panic!("{other:?}"),
        }
    }

    fn visit(&mut self, engine: &mut Engine<MemfdStore>, id: OrderId, range: PageRun, limit: u32) {
        let salt = engine.salt(self.domain);
        let end = range.end().min(range.start + u64::from(limit));
        let (mut runs, mut digests) = (Vec::new(), Vec::new());
        for page in range.start..end {
            let slot = self.slots.get(&page).copied();
            let state = match slot {
                Some(_) => VisitState::Merged,
                None if self.seen.insert(page) => VisitState::Changed,
                None => {
                    digests.push(salt.digest(&self.bytes(page)));
                    VisitState::Calm
                }
            };
            runs.push(VisitRun {
                start: page,
                len: 1,
                state: state as u32,
                slot: slot.unwrap_or(Slot {
                    arena: ArenaId(0),
                    index: 0,
                }),
            });
        }
        let report = ReportRef::Visited {
            end,
            zero_pages: 0,
            runs: &runs,
            digests: &digests,
        };
        let nothing = Copies(Vec::new());
        engine.report(self.mm, id, &report, &nothing).unwrap();
    }

    fn done(
        &self,
        engine: &mut Engine<MemfdStore>,
        id: OrderId,
        runs: &[PageRun],
        copies: &Copies,
    ) {
        let done = |run: &PageRun| OutcomeRun {
            start: run.start,
            len: u32::try_from(run.len).unwrap(),
            outcome: Outcome::Done as u32,
        };
        let outcomes: Vec<_> = runs.iter().map(done).collect();
        let report = ReportRef::Done {
            outcomes: &outcomes,
        };
        engine.report(self.mm, id, &report, copies).unwrap();
    }
}
