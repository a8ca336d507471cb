//! Slots in memory, and what must hold of how they are used.

use ksm_engine::page::{ArenaId, DomainId, NumaNode, PageBytes, Slot};
use ksm_engine::store::{SlotStore, StoreError};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// An arena.
#[derive(Debug)]
pub struct Arena {
    pub domain: DomainId,
    slots: Vec<Option<Box<PageBytes>>>,
    open: bool,
    released: bool,
}

/// All arenas, and how many of the next calls fail.
#[derive(Debug, Default)]
pub struct Arenas {
    arenas: HashMap<ArenaId, Arena>,
    pub failures: u8,
}

impl Arenas {
    /// What an agent may be told to map: a slot that was written, of an arena that is there.
    pub fn content(&self, slot: Slot, domain: DomainId) -> &PageBytes {
        let arena = self
            .arenas
            .get(&slot.arena)
            .expect("an arena that was made");
        assert_eq!(arena.domain, domain, "{slot:?} is of another domain");
        assert!(!arena.released, "{slot:?} was let go");
        let written = arena
            .slots
            .get(slot.index as usize)
            .and_then(Option::as_ref);
        written.expect("a slot that was written")
    }
}

/// The store; its copies are of the same arenas.
#[derive(Clone, Debug)]
pub struct Store {
    slots: u32,
    pub arenas: Rc<RefCell<Arenas>>,
}

impl Store {
    pub fn new(slots: u32) -> Self {
        Self {
            slots,
            arenas: Rc::default(),
        }
    }

    fn may_fail(&self, arena: ArenaId) -> Result<(), StoreError> {
        let failures = &mut self.arenas.borrow_mut().failures;
        if *failures == 0 {
            return Ok(());
        }
        *failures -= 1;
        Err(StoreError::Os {
            call: "a call",
            arena,
            errno: Errno::NOMEM,
        })
    }

    fn with<T>(&self, arena: ArenaId, use_it: impl FnOnce(&mut Arena) -> T) -> T {
        let mut arenas = self.arenas.borrow_mut();
        let arena = arenas.arenas.get_mut(&arena);
        use_it(arena.expect("an arena that was made"))
    }
}

impl SlotStore for Store {
    fn slots_per_arena(&self) -> u32 {
        self.slots
    }

    fn create(
        &mut self,
        arena: ArenaId,
        domain: DomainId,
        _node: Option<NumaNode>,
    ) -> Result<(), StoreError> {
        self.may_fail(arena)?;
        let new = Arena {
            domain,
            slots: vec![None; self.slots as usize],
            open: true,
            released: false,
        };
        let old = self.arenas.borrow_mut().arenas.insert(arena, new);
        assert!(old.is_none(), "{arena:?} is made twice");
        Ok(())
    }

    fn write(&mut self, first: Slot, pages: &[PageBytes]) -> Result<(), StoreError> {
        self.may_fail(first.arena)?;
        self.with(first.arena, |arena| {
            assert!(
                arena.open && !arena.released,
                "{first:?} is written too late"
            );
            for (index, bytes) in (first.index as usize..).zip(pages) {
                let place = &mut arena.slots[index];
                assert!(place.is_none(), "{first:?}: slot {index} is written twice");
                *place = Some(Box::new(*bytes));
            }
        });
        Ok(())
    }

    fn read(&self, slot: Slot, into: &mut PageBytes) -> Result<(), StoreError> {
        self.with(slot.arena, |arena| {
            assert!(!arena.released, "{slot:?} is read after it was let go");
            let bytes = arena.slots[slot.index as usize].as_ref();
            *into = **bytes.expect("a slot that was written");
        });
        Ok(())
    }

    fn finish(&mut self, arena: ArenaId) {
        self.with(arena, |arena| {
            assert!(arena.open, "finished twice");
            arena.open = false;
        });
    }

    fn release(&mut self, arena: ArenaId) {
        self.with(arena, |arena| {
            assert!(!arena.released, "released twice");
            arena.released = true;
        });
    }
}
