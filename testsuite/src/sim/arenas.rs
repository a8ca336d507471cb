//! Model arenas: what the daemons of a host, one after the other, ever put into slots.
//!
//! A slot is written once. A daemon may take over arenas of those before it, under numbers of its own. Arenas that a daemon let go of, or left behind when it died, keep their contents: processes
//! may still map them, and what is mapped must never change.

use super::Content;
use ksm_engine::page::{ArenaId, DomainId, NumaNode, PageBytes, Slot};
use ksm_engine::store::{SlotStore, StoreError};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A slot of any daemon that ever lived on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// Number of the daemon.
    pub daemon: u32,
    /// Its slot.
    pub slot: Slot,
}

/// An arena: the daemon that made it, and what that called it.
pub(crate) type Key = (u32, ArenaId);

impl Frame {
    pub(crate) fn arena(self) -> Key {
        (self.daemon, self.slot.arena)
    }
}

#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) domain: DomainId,
    /// The node that its memory is on, if that was asked for.
    pub(crate) numa: Option<NumaNode>,
    slots: Vec<Option<Content>>,
    open: bool,
    released: bool,
    /// Another daemon took it over when its own was dead. What was not written then never will be.
    adopted: bool,
}

/// All arenas of the host.
#[derive(Debug, Default)]
pub(crate) struct Arenas {
    arenas: BTreeMap<Key, Arena>,
    /// What daemons call arenas that they took over and have not let go.
    adopted: BTreeMap<(u32, ArenaId), Key>,
    /// Arenas let go of since somebody asked.
    let_go: Vec<Key>,
    /// Arenas taken over, ever.
    pub(crate) adoptions: u64,
    /// How many of the next calls to the store are refused.
    pub(crate) refusals: u32,
    pub(crate) releases: u64,
}

impl Arenas {
    pub(crate) fn arena(&self, frame: Frame) -> &Arena {
        self.arena_at(frame.arena())
    }

    pub(crate) fn arena_at(&self, key: Key) -> &Arena {
        self.arenas.get(&key).expect("an arena that was never made")
    }

    /// The arena that a daemon calls so.
    pub(crate) fn key(&self, daemon: u32, name: ArenaId) -> Key {
        let taken_over = self.adopted.get(&(daemon, name)).copied();
        taken_over.unwrap_or((daemon, name))
    }

    /// What a daemon calls an arena, if it has it.
    pub(crate) fn name(&self, daemon: u32, key: Key) -> Option<ArenaId> {
        if key.0 == daemon && !self.arenas.get(&key)?.released {
            return Some(key.1);
        }
        let mut own = self
            .adopted
            .range((daemon, ArenaId(0))..(daemon + 1, ArenaId(0)));
        own.find(|(_, adopted)| **adopted == key)
            .map(|((_, name), _)| *name)
    }

    /// Arenas that were let go of since this was asked last.
    pub(crate) fn take_let_go(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.let_go)
    }

    /// The arenas that a daemon has and that take no more.
    pub(crate) fn full(&self, daemon: u32) -> Vec<Key> {
        let full = |(_, arena): &(&Key, &Arena)| !arena.open && !arena.released;
        let own = self.arenas.iter().filter(|((of, _), _)| *of == daemon);
        let adopted = self.adopted.iter().filter(|((of, _), _)| *of == daemon);
        own.filter(full)
            .map(|(key, _)| *key)
            .chain(adopted.map(|(_, key)| *key))
            .collect()
    }

    /// What the slot holds.
    pub(crate) fn content(&self, frame: Frame) -> Content {
        let arena = self.arena(frame);
        let content = arena.slots[frame.slot.index as usize];
        if arena.adopted {
            return content.unwrap_or(Content::ZERO);
        }
        content.expect("a slot that was never written")
    }
}

/// The store of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct ModelStore {
    pub(crate) daemon: u32,
    pub(crate) slots_per_arena: u32,
    pub(crate) arenas: Rc<RefCell<Arenas>>,
}

impl ModelStore {
    /// Takes over an arena that an earlier daemon made.
    pub(crate) fn adopt(&mut self, name: ArenaId, key: Key) {
        let mut arenas = self.arenas.borrow_mut();
        let arena = arenas.arenas.get_mut(&key).expect("somebody has mapped it");
        arena.open = false;
        arena.adopted = true;
        arenas.adoptions += 1;
        let taken = arenas.adopted.insert((self.daemon, name), key);
        assert!(taken.is_none(), "{name:?} is the name of two arenas");
    }

    fn may_fail(&self, arena: ArenaId) -> Result<(), StoreError> {
        let refusals = &mut self.arenas.borrow_mut().refusals;
        if *refusals == 0 {
            return Ok(());
        }
        *refusals -= 1;
        Err(StoreError::Os {
            call: "model",
            arena,
            errno: Errno::NOMEM,
        })
    }
}

impl SlotStore for ModelStore {
    fn slots_per_arena(&self) -> u32 {
        self.slots_per_arena
    }

    fn create(
        &mut self,
        arena: ArenaId,
        domain: DomainId,
        numa: Option<NumaNode>,
    ) -> Result<(), StoreError> {
        self.may_fail(arena)?;
        let new = Arena {
            domain,
            numa,
            slots: vec![None; self.slots_per_arena as usize],
            open: true,
            released: false,
            adopted: false,
        };
        let arenas = &mut self.arenas.borrow_mut().arenas;
        let filling = arenas
            .iter()
            .filter(|((daemon, _), _)| *daemon == self.daemon)
            .find(|(_, other)| {
                let same = other.domain == domain && other.numa == numa;
                same && other.open && !other.released
            });
        assert!(
            filling.is_none(),
            "{arena:?} is made before {filling:?} is finished"
        );
        let old = arenas.insert((self.daemon, arena), new);
        assert!(old.is_none(), "{arena:?} is made twice");
        Ok(())
    }

    fn write(&mut self, first: Slot, pages: &[PageBytes]) -> Result<(), StoreError> {
        self.may_fail(first.arena)?;
        let mut arenas = self.arenas.borrow_mut();
        let arena = arenas
            .arenas
            .get_mut(&(self.daemon, first.arena))
            .expect("writes go to arenas that were made");
        assert!(
            arena.open && !arena.released,
            "{first:?} is written in an arena that takes no more"
        );
        for (index, bytes) in (first.index as usize..).zip(pages) {
            let place = &mut arena.slots[index];
            assert_eq!(*place, None, "{first:?}: slot {index} is written twice");
            *place = Some(Content::of_bytes(bytes));
        }
        Ok(())
    }

    fn read(&self, slot: Slot, into: &mut PageBytes) -> Result<(), StoreError> {
        let arenas = self.arenas.borrow();
        let key = arenas.key(self.daemon, slot.arena);
        assert_eq!(
            arenas.name(self.daemon, key),
            Some(slot.arena),
            "{slot:?} is read after its arena was let go"
        );
        let frame = Frame {
            daemon: key.0,
            slot: Slot {
                arena: key.1,
                index: slot.index,
            },
        };
        *into = arenas.content(frame).bytes();
        Ok(())
    }

    fn finish(&mut self, arena: ArenaId) {
        let mut arenas = self.arenas.borrow_mut();
        let arena = arenas
            .arenas
            .get_mut(&(self.daemon, arena))
            .expect("only arenas that were made are finished");
        assert!(arena.open, "finished twice");
        arena.open = false;
    }

    fn release(&mut self, arena: ArenaId) {
        let mut arenas = self.arenas.borrow_mut();
        arenas.releases += 1;
        if let Some(key) = arenas.adopted.remove(&(self.daemon, arena)) {
            arenas.let_go.push(key);
            return;
        }
        let key = (self.daemon, arena);
        arenas.let_go.push(key);
        let arena = arenas
            .arenas
            .get_mut(&key)
            .expect("only arenas that were made are released");
        assert!(!arena.released, "released twice");
        arena.released = true;
    }
}
