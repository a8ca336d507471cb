//! Which slots of which arenas are in use, and by which stable node.
//!
//! Slots are given out in ascending order, so that pages donated in address order can later be mapped as runs. A slot
//! is never used twice. An arena is let go when none of its slots is in use; its memory is freed by the kernel when
//! the last mapping of it is gone.

use super::stable::NodeId;
use crate::page::{ArenaId, NumaNode, Slot};
use std::collections::BTreeMap;

/// One arena of a domain.
#[derive(Debug)]
pub(crate) struct Arena {
    /// The node of each slot given out; `None` when it is not in use any more.
    nodes: Vec<Option<NodeId>>,
    used: u32,
    /// How many it has room for.
    slots: u32,
    /// It takes no more.
    closed: bool,
    /// Where its memory is, if that was asked for.
    numa: Option<NumaNode>,
    /// Items still mapped here after their nodes were moved elsewhere.
    pub(crate) left_behind: u64,
    /// Its pages are being moved out.
    pub(crate) retiring: bool,
}

/// The arenas of one domain.
#[derive(Debug, Default)]
pub(crate) struct Arenas {
    arenas: BTreeMap<ArenaId, Arena>,
    /// Those that take more slots: one for each NUMA node if that matters, else one.
    open: BTreeMap<Option<NumaNode>, ArenaId>,
}

impl Arenas {
    /// The slot that is taken next for pages of `numa`, if an arena is open for them.
    pub(crate) fn next(&self, numa: Option<NumaNode>) -> Option<Slot> {
        let arena = *self.open.get(&numa)?;
        let given_out = self.arenas.get(&arena)?.nodes.len();
        let index = u32::try_from(given_out).expect("an arena has few slots");
        Some(Slot { arena, index })
    }

    /// How many more slots the open arena has.
    pub(crate) fn room(&self, numa: Option<NumaNode>) -> usize {
        let open = self.open.get(&numa).and_then(|id| self.arenas.get(id));
        open.map_or(0, |arena| arena.slots as usize - arena.nodes.len())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.arenas.len() as u64
    }

    /// Adds an empty arena and opens it for pages of `numa`, for which none may be open.
    pub(crate) fn add(&mut self, id: ArenaId, slots: u32, numa: Option<NumaNode>) {
        let arena = Arena {
            nodes: Vec::new(),
            used: 0,
            slots,
            closed: false,
            numa,
            left_behind: 0,
            retiring: false,
        };
        self.arenas.insert(id, arena);
        self.open.insert(numa, id);
    }

    /// Where the arena of a slot is, if that was asked for.
    pub(crate) fn numa_of(&self, slot: Slot) -> Option<NumaNode> {
        self.arenas.get(&slot.arena)?.numa
    }

    /// Closes the open arenas, for good.
    pub(crate) fn close_all(&mut self) -> Vec<ArenaId> {
        let open = std::mem::take(&mut self.open);
        for id in open.values() {
            if let Some(arena) = self.arenas.get_mut(id) {
                arena.closed = true;
            }
        }
        open.into_values().collect()
    }

    /// Takes the next slot, which has been written. Returns whether it was the arena's last: then none is open for `numa`
    /// any more.
    pub(crate) fn take(&mut self, numa: Option<NumaNode>, node: NodeId) -> bool {
        let open = self.open.get(&numa);
        let Some(arena) = open.and_then(|id| self.arenas.get_mut(id)) else {
            return false;
        };
        arena.nodes.push(Some(node));
        arena.used += 1;
        arena.closed = arena.nodes.len() == arena.slots as usize;
        if arena.closed {
            self.open.remove(&numa);
            return true;
        }
        false
    }

    /// The node whose bytes are, or were, in `slot`.
    pub(crate) fn node_at(&self, slot: Slot) -> Option<NodeId> {
        *self
            .arenas
            .get(&slot.arena)?
            .nodes
            .get(slot.index as usize)?
    }

    /// Whether the slot was ever given out by an arena that is still here.
    pub(crate) fn knows(&self, slot: Slot) -> bool {
        self.arenas
            .get(&slot.arena)
            .is_some_and(|arena| (slot.index as usize) < arena.nodes.len())
    }

    /// Puts a node to a slot that was given out before.
    pub(crate) fn reuse(&mut self, slot: Slot, node: NodeId) {
        if let Some(arena) = self.arenas.get_mut(&slot.arena)
            && let Some(place @ None) = arena.nodes.get_mut(slot.index as usize)
        {
            *place = Some(node);
            arena.used += 1;
        }
    }

    /// A slot is not in use any more.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        if let Some(arena) = self.arenas.get_mut(&slot.arena)
            && let Some(place) = arena.nodes.get_mut(slot.index as usize)
            && place.take().is_some()
        {
            arena.used -= 1;
        }
    }

    pub(crate) fn get_mut(&mut self, id: ArenaId) -> Option<&mut Arena> {
        self.arenas.get_mut(&id)
    }

    /// Takes out the arenas that hold nothing any more, the open ones excepted.
    pub(crate) fn take_empty(&mut self) -> Vec<ArenaId> {
        let empty: Vec<_> = self
            .arenas
            .iter()
            .filter(|(_, arena)| arena.used == 0 && arena.left_behind == 0 && arena.closed)
            .map(|(id, _)| *id)
            .collect();
        for id in &empty {
            self.arenas.remove(id);
        }
        empty
    }

    /// Takes out all arenas, in use or not.
    pub(crate) fn take_all(&mut self) -> Vec<ArenaId> {
        self.open.clear();
        std::mem::take(&mut self.arenas).into_keys().collect()
    }

    /// Arenas to be moved out of now: a closed one with at most a quarter of its slots in use, and those that were begun
    /// before and are in use again or still, because a forked child was found on a slot that was given up, or a node
    /// could not be moved.
    pub(crate) fn sparse(&self) -> Vec<ArenaId> {
        let begun = |a: &Arena| a.retiring && a.used > 0;
        let sparse = |a: &Arena| !a.retiring && a.closed && a.used > 0 && a.used <= a.slots / 4;
        let ids = |wanted: fn(&Arena) -> bool| {
            let wanted = move |(_, arena): &(_, &Arena)| wanted(arena);
            self.arenas.iter().filter(wanted).map(|(id, _)| *id)
        };
        ids(begun).chain(ids(sparse).take(1)).collect()
    }

    /// The nodes with a slot in this arena, in slot order.
    pub(crate) fn nodes_of(&self, id: ArenaId) -> Vec<NodeId> {
        self.arenas
            .get(&id)
            .map(|a| a.nodes.iter().copied().flatten().collect())
            .unwrap_or_default()
    }

    /// Slots in use, in all arenas.
    pub(crate) fn used(&self) -> u64 {
        self.arenas
            .values()
            .map(|arena| u64::from(arena.used))
            .sum()
    }

    /// Slots written and not in use any more, in arenas that are still here.
    pub(crate) fn dead(&self) -> u64 {
        self.arenas
            .values()
            .map(|arena| arena.nodes.len() as u64 - u64::from(arena.used))
            .sum()
    }
}
