//! Where a report is put together: a structure of fixed size in memory of our own.

use crate::space::figures::Counters;
use ksm_engine::order::{
    MAX_RUNS, Outcome, OutcomeRun, ReportRef, VISIT_PAGES, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, PageRun, Slot};
use zerocopy::FromZeros;

const NO_SLOT: Slot = Slot {
    arena: ArenaId(0),
    index: 0,
};

/// One report. All-zero bytes are an empty one; to be made with [`Placed::new`](crate::sys::memory::Placed::new).
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct ReportBuffer {
    visits: [VisitRun; MAX_RUNS],
    digests: [Digest; VISIT_PAGES as usize],
    outcomes: [OutcomeRun; MAX_RUNS],
    visit_count: usize,
    digest_count: usize,
    outcome_count: usize,
}

impl ReportBuffer {
    pub(super) fn clear(&mut self) {
        self.visit_count = 0;
        self.digest_count = 0;
        self.outcome_count = 0;
    }

    /// Whether one more page surely fits.
    pub(super) fn has_room(&self) -> bool {
        self.visit_count < MAX_RUNS && self.digest_count < VISIT_PAGES as usize
    }

    /// Adds what a visit found in a page that is behind all before.
    pub(super) fn visit(&mut self, page: u64, state: VisitState, slot: Option<Slot>) {
        self.visit_as(page, state, state as u32, slot);
    }

    /// The same for an ordinary page of which there is more to say: `FRAME_SHARED`, `IN_HUGE_PAGE`.
    pub(super) fn visit_with(
        &mut self,
        page: u64,
        state: VisitState,
        more: u32,
        slot: Option<Slot>,
    ) {
        self.visit_as(page, state, state as u32 | more, slot);
    }

    fn visit_as(&mut self, page: u64, state: VisitState, number: u32, slot: Option<Slot>) {
        let slot = slot.unwrap_or(NO_SLOT);
        if let Some(last) = self
            .visit_count
            .checked_sub(1)
            .and_then(|last| self.visits.get_mut(last))
            && last.state == number
            && last.pages().end() == page
            && follows(last, state, slot)
        {
            last.len += 1;
            return;
        }
        if let Some(next) = self.visits.get_mut(self.visit_count) {
            *next = VisitRun {
                start: page,
                len: 1,
                state: number,
                slot,
            };
            self.visit_count += 1;
        }
    }

    /// Adds pages that are as they were last reported. False if the report takes no more.
    pub(super) fn unchanged(&mut self, run: PageRun, counted: u32) -> bool {
        let Ok(len) = u32::try_from(run.len) else {
            return false;
        };
        let last = self.visit_count.checked_sub(1);
        if let Some(last) = last.and_then(|last| self.visits.get_mut(last))
            && last.found() == Some(VisitState::Unchanged)
            && last.pages().end() == run.start
        {
            last.len += len;
            last.slot.index += counted;
        } else if let Some(next) = self.visits.get_mut(self.visit_count) {
            *next = VisitRun::unchanged(run.start, len, counted);
            self.visit_count += 1;
        } else {
            return false;
        }
        true
    }

    pub(super) fn digest(&mut self, digest: Digest) {
        if let Some(next) = self.digests.get_mut(self.digest_count) {
            *next = digest;
            self.digest_count += 1;
        }
    }

    /// Adds what became of the next pages of an order.
    pub(super) fn outcome(&mut self, run: PageRun, outcome: Outcome) {
        let Ok(len) = u32::try_from(run.len) else {
            return;
        };
        if let Some(last) = self
            .outcome_count
            .checked_sub(1)
            .and_then(|last| self.outcomes.get_mut(last))
            && last.outcome == outcome as u32
            && last.pages().end() == run.start
            && let Some(sum) = last.len.checked_add(len)
        {
            last.len = sum;
            return;
        }
        if let Some(next) = self.outcomes.get_mut(self.outcome_count) {
            *next = OutcomeRun {
                start: run.start,
                len,
                outcome: outcome as u32,
            };
            self.outcome_count += 1;
        }
    }

    /// The same for all pages of a step, one outcome each.
    pub(super) fn outcomes(&mut self, run: PageRun, outcomes: &[Outcome]) {
        for (page, outcome) in (run.start..run.end()).zip(outcomes) {
            self.outcome(
                PageRun {
                    start: page,
                    len: 1,
                },
                *outcome,
            );
        }
    }

    fn all_outcomes(&self) -> &[OutcomeRun] {
        self.outcomes.get(..self.outcome_count).unwrap_or(&[])
    }

    pub(super) fn count_outcomes(&self, counters: &Counters) {
        for run in self.all_outcomes() {
            if let Some(outcome) = Outcome::from_number(run.outcome) {
                counters.outcome(outcome, run.len.into());
            }
        }
    }

    pub(super) fn done(&self) -> ReportRef<'_> {
        ReportRef::Done {
            outcomes: self.all_outcomes(),
        }
    }

    pub(super) fn visited(&self, end: u64, zero_pages: u64) -> ReportRef<'_> {
        ReportRef::Visited {
            end,
            zero_pages,
            runs: self.visits.get(..self.visit_count).unwrap_or(&[]),
            digests: self.digests.get(..self.digest_count).unwrap_or(&[]),
        }
    }
}

/// Whether `slot` is the one after the last of `run`. Pages that are not merged have none: there it names their node.
fn follows(run: &VisitRun, state: VisitState, slot: Slot) -> bool {
    if state != VisitState::Merged {
        return slot == run.slot;
    }
    slot.arena == run.slot.arena && run.slot.index.checked_add(run.len) == Some(slot.index)
}
