//! What the kernel's KSM tells nobody: figures of each process with the reasons why pages did not merge, a scan on demand,
//! and what merging would save.

use super::items::State;
use super::scan::Ksmd;
use super::{Engine, Ticket, Written, profit};
use crate::knobs::RunState;
use crate::page::{MmId, PageRun};
use crate::store::SlotStore;
use crate::wire::ProcessFigures;

/// Somebody who waits for a full scan.
#[derive(Debug)]
pub(crate) struct Waiting {
    ticket: Ticket,
    /// The number of full scans at which it is over.
    until: u64,
}

impl<S: SlotStore> Engine<S> {
    /// What merging came to in one process. Goes through its items. Pid and user are the caller's to fill in.
    #[must_use]
    pub fn process(&self, mm: MmId) -> ProcessFigures {
        let Some(mm) = self.mms.get(mm) else {
            return ProcessFigures::default();
        };
        let items = mm.items.within(PageRun::EVERYTHING);
        let unshared = items.filter(|(_, item)| item.state == State::Unstable);
        let rmap_items = mm.items.len();
        ProcessFigures {
            pid: 0,
            uid: 0,
            domain: mm.domain.0.into(),
            registered: mm.mergeable_pages(),
            rmap_items,
            merged: mm.merging,
            zero: mm.zero_pages,
            unshared: unshared.count() as u64,
            would_merge: mm.would_merge,
            profit: profit(mm.merging + mm.zero_pages, rmap_items),
            reasons: mm.reasons,
        }
    }

    /// Scans everything once from now on, without pauses and whatever `run` says, unless it says to stay unmerged.
    pub fn scan_now(&mut self) -> Written {
        if self.list.is_empty() || self.knobs.run == RunState::Unmerge {
            return Written::Done;
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        // What a scan has passed already it does not come back to.
        let under_way = u64::from(!self.list.at_head());
        let until = self.tally.full_scans + 1 + under_way;
        self.waiting_for_scan.push(Waiting { ticket, until });
        self.pump();
        Written::Pending(ticket)
    }

    /// Whether somebody waits for the scan.
    pub(super) fn is_urgent(&self) -> bool {
        !self.waiting_for_scan.is_empty()
    }

    /// Answers those whose scan is over, or will never be.
    pub(super) fn answer_scans(&mut self) {
        let stopped = self.knobs.run == RunState::Unmerge || self.list.is_empty();
        let full_scans = self.tally.full_scans;
        let finished = &mut self.finished;
        self.waiting_for_scan.retain(|waiting| {
            let is_over = stopped || full_scans >= waiting.until;
            if is_over {
                finished.push_back((waiting.ticket, Ok(())));
            }
            !is_over
        });
    }

    /// In a dry run: a page has a twin, or is zero, and nothing is done about it.
    pub(super) fn would_merge(&mut self, mm: MmId) {
        if let Some(mm) = self.mms.get_mut(mm) {
            mm.would_merge_so_far += 1;
        }
    }

    /// A full scan is over: what it counted is what a dry run says.
    pub(super) fn sum_up_dry_run(&mut self) {
        for mm in self.mms.iter_mut() {
            mm.would_merge = std::mem::take(&mut mm.would_merge_so_far);
        }
    }

    /// Whether a batch sleeps before the next one.
    pub(super) fn is_asleep(&self) -> bool {
        matches!(&self.ksmd, Ksmd::Sleeping(sleep) if sleep.lasts_at(self.now)) && !self.is_urgent()
    }
}
