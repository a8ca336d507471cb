//! Counting the zero pages that are in place.
//!
//! An app that writes to one tells nobody, and yet `ksm_zero_pages` is a live figure with the kernel. So whoever is about
//! to read it has the agents count anew first, but only those that can have any.

use super::{Engine, Purpose, Ticket, Written};
use crate::order::Order;
use crate::page::MmId;
use crate::store::SlotStore;

impl<S: SlotStore> Engine<S> {
    /// Has the zero pages of the mms `of` counted, so that [`Engine::counters`] and [`Engine::figures`] state those that are in
    /// place now.
    pub fn count_zero_pages(&mut self, of: impl Fn(MmId) -> bool) -> Written {
        let may_have = |mm: &super::Mm| self.is_asked(mm) && (mm.zero_pages > 0 || !mm.counted);
        let asked: Vec<MmId> = self
            .mms
            .iter()
            .filter_map(|(id, mm)| (of(id) && may_have(mm)).then_some(id))
            .collect();
        if asked.is_empty() {
            return Written::Done;
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.counts.insert(ticket, asked.len());
        for mm in asked {
            self.outbox
                .send(mm, Order::Count, Purpose::Count(ticket), self.now);
        }
        Written::Pending(ticket)
    }

    /// An agent has said how many zero pages its process has.
    pub(super) fn counted(&mut self, mm: MmId, zero_pages: u64) {
        if let Some(mm) = self.mms.get_mut(mm).filter(|mm| !mm.exiting) {
            mm.zero_pages = zero_pages.min(mm.mergeable_pages());
            mm.counted = true;
        }
    }

    /// One agent less to wait for.
    pub(super) fn count_answered(&mut self, ticket: Ticket) {
        let Some(left) = self.counts.get_mut(&ticket) else {
            return;
        };
        *left -= 1;
        if *left == 0 {
            self.counts.remove(&ticket);
            self.finished.push_back((ticket, Ok(())));
        }
    }
}
