//! Closing domains: what is kept of one goes when its last process is gone, and not before.

use super::Engine;
use crate::page::DomainId;
use crate::store::SlotStore;

impl<S: SlotStore> Engine<S> {
    /// No process joins this domain any more. It goes with the pages of its last process, which the next scan frees.
    pub fn close_domain(&mut self, id: DomainId) {
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.closed = true;
            self.drop_closed_domain(id);
        }
    }

    /// Whether anything is kept of a domain.
    #[must_use]
    pub fn knows_domain(&self, id: DomainId) -> bool {
        self.domains.contains_key(&id)
    }

    /// Drops a domain that is closed and has no process left.
    pub(super) fn drop_closed_domain(&mut self, id: DomainId) {
        let is_closed = self.domains.get(&id).is_some_and(|domain| domain.closed);
        if !is_closed || self.mms.iter().any(|(_, mm)| mm.domain == id) {
            return;
        }
        if let Some(mut domain) = self.domains.remove(&id) {
            for (arena, filled) in domain.arenas.take_all() {
                self.store.release(arena);
                self.filled.give_back(&filled);
            }
        }
        self.left_behind.retain(|(domain, _), _| *domain != id);
    }
}
