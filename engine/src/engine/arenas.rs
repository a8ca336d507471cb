//! Which slots of which arenas are in use, and by which stable node.
//!
//! Slots are given out in ascending order, so that pages donated in address order can later be mapped as runs. A slot
//! is never used twice. An arena is let go when none of its slots is in use; its memory is freed by the kernel when
//! the last mapping of it is gone.

use super::stable::NodeId;
use crate::page::{ArenaId, NumaNode, Slot, UserId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Which pages an arena takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// Whose: his quota is charged.
    pub(crate) user: UserId,
    /// Of which node, if that matters: there its memory is asked for.
    pub(crate) numa: Option<NumaNode>,
}

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
    kind: Kind,
    /// Items still mapped here after their nodes were moved elsewhere.
    pub(crate) left_behind: u64,
    /// Its pages are being moved out.
    pub(crate) retiring: bool,
    /// If it was taken over from an earlier daemon: this many full scans are to look who is mapped to it before it counts as hardly used.
    unknown_for: u8,
    /// And at least until then.
    unknown_until: Duration,
}

/// A scan that has begun may have passed those who are mapped to an arena already.
const SCANS_TO_KNOW: u8 = 2;
/// And agents take their time: one may have said what is mapped, and not yet what is registered.
const TIME_TO_KNOW: Duration = Duration::from_secs(10);
/// Two would do if every agent answered every time.
const SCANS_TO_PUT_TOGETHER: u8 = 64;

impl Arena {
    /// Whether it is known who is mapped to it.
    fn is_known(&self, now: Duration) -> bool {
        self.unknown_for == 0 && self.unknown_until <= now
    }

    /// Whose pages it takes.
    pub(crate) fn user(&self) -> UserId {
        self.kind.user
    }

    /// Slots that were given out, in use or not. All of them take memory.
    pub(crate) fn filled(&self) -> u64 {
        self.nodes.len() as u64
    }
}

/// The arenas of one domain.
#[derive(Debug, Default)]
pub(crate) struct Arenas {
    arenas: BTreeMap<ArenaId, Arena>,
    /// Those that take more slots.
    open: BTreeMap<Kind, ArenaId>,
    /// So many full scans are to put together what an earlier daemon has left in two places.
    put_together_for: u8,
    /// From when on: not before it is known who is mapped to what, or more could come to share a page than may.
    put_together_from: Duration,
}

impl Arenas {
    /// The slot that is taken next for such pages, if an arena is open for them.
    pub(crate) fn next(&self, kind: Kind) -> Option<Slot> {
        let arena = *self.open.get(&kind)?;
        let given_out = self.arenas.get(&arena)?.nodes.len();
        let index = u32::try_from(given_out).expect("an arena has few slots");
        Some(Slot { arena, index })
    }

    /// How many more slots the open arena has.
    pub(crate) fn room(&self, kind: Kind) -> usize {
        let open = self.open.get(&kind).and_then(|id| self.arenas.get(id));
        open.map_or(0, |arena| arena.slots as usize - arena.nodes.len())
    }

    /// Adds an empty arena and opens it for such pages, for which none may be open.
    pub(crate) fn add(&mut self, id: ArenaId, slots: u32, kind: Kind) {
        let arena = Arena {
            nodes: Vec::new(),
            used: 0,
            slots,
            closed: false,
            kind,
            left_behind: 0,
            retiring: false,
            unknown_for: 0,
            unknown_until: Duration::ZERO,
        };
        self.arenas.insert(id, arena);
        self.open.insert(kind, id);
    }

    /// Adds an arena that an earlier daemon filled. Which of its slots are in use is not known yet.
    pub(crate) fn add_adopted(&mut self, id: ArenaId, slots: u32, kind: Kind, now: Duration) {
        let arena = Arena {
            nodes: vec![None; slots as usize],
            used: 0,
            slots,
            closed: true,
            kind,
            left_behind: 0,
            retiring: false,
            unknown_for: SCANS_TO_KNOW,
            unknown_until: now + TIME_TO_KNOW,
        };
        self.put_together_for = SCANS_TO_PUT_TOGETHER;
        self.put_together_from = now + TIME_TO_KNOW;
        self.arenas.insert(id, arena);
    }

    /// Somebody more says that he is mapped to an arena. If it was taken over, it is looked at again.
    pub(crate) fn expect(&mut self, id: ArenaId, now: Duration) {
        if let Some(arena) = self.arenas.get_mut(&id)
            && arena.unknown_until > Duration::ZERO
        {
            arena.unknown_for = SCANS_TO_KNOW;
            arena.unknown_until = now + TIME_TO_KNOW;
            self.put_together_for = SCANS_TO_PUT_TOGETHER;
            self.put_together_from = now + TIME_TO_KNOW;
        }
    }

    /// How many arenas there are.
    pub(crate) fn len(&self) -> usize {
        self.arenas.len()
    }

    /// Whether an arena was taken over lately: its daemon may have died while it moved pages, so that some are in two.
    pub(crate) fn put_together(&self, now: Duration) -> bool {
        let goes_on = self.put_together_for > 0 || now < self.put_together_from + TIME_TO_KNOW;
        goes_on && self.put_together_from > Duration::ZERO && now >= self.put_together_from
    }

    /// A full scan has passed.
    pub(crate) fn scan_passed(&mut self, now: Duration) {
        if now >= self.put_together_from {
            self.put_together_for = self.put_together_for.saturating_sub(1);
        }
        for arena in self.arenas.values_mut() {
            arena.unknown_for = arena.unknown_for.saturating_sub(1);
        }
    }

    /// Where the arena of a slot is, if that was asked for.
    pub(crate) fn numa_of(&self, slot: Slot) -> Option<NumaNode> {
        self.arenas.get(&slot.arena)?.kind.numa
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

    /// Closes the open arenas of a user that have a quarter of their slots in use, or less: their memory can come back then.
    pub(crate) fn close_wasteful(&mut self, user: UserId) -> Vec<ArenaId> {
        let mut closed = Vec::new();
        self.open.retain(|kind, id| {
            if let Some(arena) = self.arenas.get_mut(id).filter(|_| kind.user == user) {
                arena.closed = u64::from(arena.used) <= arena.filled() / 4;
                closed.extend(arena.closed.then_some(*id));
                return !arena.closed;
            }
            true
        });
        closed
    }

    /// Takes the next slot, which has been written. Returns whether it was the arena's last: then none is open for such
    /// pages any more.
    pub(crate) fn take(&mut self, kind: Kind, node: NodeId) -> bool {
        let open = self.open.get(&kind);
        let Some(arena) = open.and_then(|id| self.arenas.get_mut(id)) else {
            return false;
        };
        arena.nodes.push(Some(node));
        arena.used += 1;
        arena.closed = arena.nodes.len() == arena.slots as usize;
        if arena.closed {
            self.open.remove(&kind);
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arena> {
        self.arenas.values()
    }

    pub(crate) fn get(&self, id: ArenaId) -> Option<&Arena> {
        self.arenas.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ArenaId) -> Option<&mut Arena> {
        self.arenas.get_mut(&id)
    }

    /// Takes out the arenas that hold nothing any more, the open ones excepted.
    pub(crate) fn take_empty(&mut self, now: Duration) -> Vec<(ArenaId, Arena)> {
        let is_empty = |arena: &Arena| {
            let unused = arena.used == 0 && arena.left_behind == 0;
            unused && arena.closed && arena.is_known(now)
        };
        let empty = self.arenas.iter().filter(|(_, arena)| is_empty(arena));
        let empty: Vec<_> = empty.map(|(id, _)| *id).collect();
        let take = |id| Some((id, self.arenas.remove(&id)?));
        empty.into_iter().filter_map(take).collect()
    }

    /// Takes out all arenas, in use or not.
    pub(crate) fn take_all(&mut self) -> BTreeMap<ArenaId, Arena> {
        self.open.clear();
        std::mem::take(&mut self.arenas)
    }

    /// Arenas to be moved out of now: a closed one with at most a quarter of its slots in use, and those that were begun
    /// before and are in use again or still, because a forked child was found on a slot that was given up, or a node
    /// could not be moved.
    pub(crate) fn sparse(&self, now: Duration) -> Vec<ArenaId> {
        let begun = |a: &Arena| a.retiring && a.used > 0;
        let sparse = |a: &Arena| {
            let known = !a.retiring && a.closed && a.is_known(now);
            known && a.used > 0 && a.used <= a.slots / 4
        };
        let ids = |wanted: &dyn Fn(&Arena) -> bool| {
            let wanted = move |(_, arena): &(_, &Arena)| wanted(arena);
            let found = self.arenas.iter().filter(wanted);
            found.map(|(id, _)| *id).collect::<Vec<_>>()
        };
        ids(&begun)
            .into_iter()
            .chain(ids(&sparse).into_iter().take(1))
            .collect()
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

    /// Slots written and not in use any more, in arenas that are still here. Of one that was taken over nobody knows how
    /// many were written: all count, as its memory may be theirs.
    pub(crate) fn dead(&self) -> u64 {
        self.arenas
            .values()
            .map(|arena| arena.nodes.len() as u64 - u64::from(arena.used))
            .sum()
    }
}
