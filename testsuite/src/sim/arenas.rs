//! Model arenas: what the daemons of a host, one after the other, ever put into slots.
//!
//! A slot is written once. Arenas that a daemon let go of, or left behind when it died, keep their contents: processes
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

#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) domain: DomainId,
    /// The node that its memory is on, if that was asked for.
    pub(crate) numa: Option<NumaNode>,
    slots: Vec<Option<Content>>,
    open: bool,
    pub(crate) released: bool,
}

/// All arenas of the host.
#[derive(Debug, Default)]
pub(crate) struct Arenas {
    arenas: BTreeMap<(u32, ArenaId), Arena>,
    /// How many of the next calls to the store are refused.
    pub(crate) refusals: u32,
    pub(crate) releases: u64,
}

impl Arenas {
    pub(crate) fn arena(&self, frame: Frame) -> &Arena {
        self.arenas
            .get(&(frame.daemon, frame.slot.arena))
            .expect("a slot of an arena that was never made")
    }

    /// The arenas of a daemon that are full and have not been released.
    pub(crate) fn full(&self, daemon: u32) -> Vec<ArenaId> {
        let full = |arena: &Arena| !arena.open && !arena.released;
        let of_daemon = self.arenas.iter().filter(|((of, _), _)| *of == daemon);
        of_daemon
            .filter(|(_, arena)| full(arena))
            .map(|((_, id), _)| *id)
            .collect()
    }

    /// What the slot holds.
    pub(crate) fn content(&self, frame: Frame) -> Content {
        self.arena(frame).slots[frame.slot.index as usize].expect("a slot that was never written")
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
        let frame = Frame {
            daemon: self.daemon,
            slot,
        };
        let arenas = self.arenas.borrow();
        assert!(
            !arenas.arena(frame).released,
            "{slot:?} is read after its arena was let go"
        );
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
        let arena = arenas
            .arenas
            .get_mut(&(self.daemon, arena))
            .expect("only arenas that were made are released");
        assert!(!arena.released, "released twice");
        arena.released = true;
    }
}
