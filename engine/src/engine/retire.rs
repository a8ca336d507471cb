//! Retiring arenas: moving the last pages out of an arena so that its memory can be freed.
//!
//! A slot can never be punched out of a sealed arena, so memory comes back only as a whole arena. When at most a
//! quarter of a full arena is in use, its live slots are copied to the open arena, and the next scan tells their
//! sharers to map the copies. Old and new bytes are equal and immutable, so it does not matter when each sharer follows; the old
//! arena is let go when the last one has.

use super::Engine;
use super::items::{ItemRef, State};
use super::stable::NodeId;
use crate::order::Outcome;
use crate::page::{ArenaId, DomainId, PAGE_SIZE};
use crate::store::SlotStore;

impl<S: SlotStore> Engine<S> {
    /// Goes on to retire sparse arenas, and begins with one more of each domain. At the end of a scan, when no order is
    /// out.
    pub(super) fn retire_sparse_arenas(&mut self) {
        let sparse: Vec<(DomainId, ArenaId)> = self
            .domains
            .iter()
            .flat_map(|(id, domain)| {
                domain
                    .arenas
                    .sparse(self.now)
                    .into_iter()
                    .map(|arena| (*id, arena))
            })
            .collect();
        for (domain, arena) in sparse {
            self.retire(domain, arena);
        }
    }

    fn retire(&mut self, id: DomainId, arena: ArenaId) {
        let Some(domain) = self.domains.get_mut(&id) else {
            return;
        };
        let nodes = domain.arenas.nodes_of(arena);
        if let Some(arena) = domain.arenas.get_mut(arena) {
            arena.retiring = true;
        }
        for node in nodes {
            // A node has stragglers in one arena at most.
            if self.left_behind.contains_key(&(id, node)) {
                continue;
            }
            if self.move_node(id, arena, node).is_none() {
                return;
            }
        }
    }

    /// Copies one page to the open arena. Its sharers are told to follow when the next scan visits them.
    fn move_node(&mut self, id: DomainId, from: ArenaId, node: NodeId) -> Option<()> {
        let stable = self.domains.get(&id)?.stable.node(node);
        let (old, items) = (stable.slot?, stable.items().to_vec());
        let mut bytes = [0; PAGE_SIZE];
        self.store.read(old, &mut bytes).ok()?;
        let user = self.domains.get(&id)?.arenas.get(from)?.user();
        self.fill_slots(id, user, &[node], &[bytes])?;
        let arenas = &mut self.domains.get_mut(&id)?.arenas;
        arenas.give_back(old);
        arenas.get_mut(from)?.left_behind += items.len() as u64;
        for item in items {
            if let Some(mm) = self.mms.get_mut(item.mm())
                && let Some(tracked) = mm.items.get_mut(item.page())
            {
                tracked.stay_on_old_slot();
            }
        }
        self.left_behind.insert((id, node), from);
        Some(())
    }

    /// A sharer maps the new slot now, or could not.
    pub(super) fn remapped(&mut self, item: ItemRef, outcome: Outcome) {
        let known = self.item(item);
        if known.state != State::Stable {
            return;
        }
        if outcome == Outcome::Done {
            self.leave_old_slot(item, NodeId(known.link));
        } else {
            self.note(item.mm(), outcome);
        }
    }

    /// One item fewer is mapped to the slot that its node had before.
    pub(super) fn leave_old_slot(&mut self, item: ItemRef, node: NodeId) {
        let Some(mm) = self.mms.get_mut(item.mm()) else {
            return;
        };
        let domain = mm.domain;
        let Some(tracked) = mm.items.get_mut(item.page()) else {
            return;
        };
        if !tracked.leave_old_slot() {
            return;
        }
        if let Some(from) = self.left_behind.get(&(domain, node))
            && let Some(domain) = self.domains.get_mut(&domain)
            && let Some(arena) = domain.arenas.get_mut(*from)
        {
            arena.left_behind -= 1;
            if arena.left_behind == 0 {
                // The nodes may move again, and their numbers be given to others.
                let emptied = *from;
                self.left_behind.retain(|_, from| *from != emptied);
            }
        }
    }
}
