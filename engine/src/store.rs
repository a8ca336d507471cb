//! Where the bytes of merged pages are kept.
//!
//! The engine only says which slot gets which bytes; [`crate::arena`] keeps them in sealed memfds, the simulator in a
//! vector.

use crate::page::{ArenaId, DomainId, NumaNode, PageBytes, Slot};

/// Slots of one arena, unless a store says otherwise: 32 MiB of address space, of which only written slots take memory.
pub const ARENA_SLOTS: u32 = 8192;

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("{call} for arena {arena:?}: {errno}")]
    Os {
        /// The system call.
        call: &'static str,
        /// The arena.
        arena: ArenaId,
        /// Its error.
        errno: rustix::io::Errno,
    },
    /// No such arena, or it takes no more slots.
    #[error("arena {0:?} is not open for writing")]
    NotOpen(ArenaId),
}

/// Keeps the bytes of slots.
pub trait SlotStore {
    /// Slots of each arena, the same for all of them.
    fn slots_per_arena(&self) -> u32 {
        ARENA_SLOTS
    }

    /// Makes an empty arena of [`Self::slots_per_arena`] slots for the pages of `domain`, with its memory on `node` if
    /// one is given and has room.
    ///
    /// # Errors
    /// When the system refuses; nothing is left behind then.
    fn create(
        &mut self,
        arena: ArenaId,
        domain: DomainId,
        node: Option<NumaNode>,
    ) -> Result<(), StoreError>;

    /// Writes consecutive slots of one arena, from `first` on: all of them, or none. Each slot is written once.
    ///
    /// # Errors
    /// When the arena is not open, or there is no memory.
    fn write(&mut self, first: Slot, pages: &[PageBytes]) -> Result<(), StoreError>;

    /// Reads a slot that was written.
    ///
    /// # Errors
    /// When there is no such arena.
    fn read(&self, slot: Slot, into: &mut PageBytes) -> Result<(), StoreError>;

    /// Says that no further slot of the arena will be written.
    fn finish(&mut self, arena: ArenaId);

    /// Lets go of the arena. Its memory lives on for as long as any process maps it.
    fn release(&mut self, arena: ArenaId);
}
