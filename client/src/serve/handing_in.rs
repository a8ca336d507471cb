//! Telling a daemon which arenas are mapped here, and learning what it calls them.
//!
//! A daemon that is new takes over what a dead one left: it gets the descriptors that were [`Kept`]. Where there is none,
//! after a fork or with a new agent, the inode alone says which arena is meant, and the daemon may know it from others.

use crate::agent::kept::Kept;
use crate::link::Link;
use crate::link_state::LinkState;
use crate::space::{PATIENCE, Space, Tables};
use crate::sys::guarded::Guard;
use ksm_engine::page::ArenaId;
use ksm_engine::wire::{HANDED_IN, HeldArena, MessageBuffer, NamedArena, ToDaemon};
use std::os::fd::{BorrowedFd, OwnedFd};

/// Arenas of one message.
struct Batch<'fd> {
    arenas: [HeldArena; HANDED_IN],
    descriptors: [Option<BorrowedFd<'fd>>; HANDED_IN],
    count: usize,
}

impl<'fd> Batch<'fd> {
    fn new() -> Self {
        Self {
            arenas: [HeldArena::default(); HANDED_IN],
            descriptors: [None; HANDED_IN],
            count: 0,
        }
    }

    fn push(&mut self, arena: HeldArena, descriptor: Option<BorrowedFd<'fd>>) {
        if let Some(place) = self.arenas.get_mut(self.count) {
            *place = arena;
        }
        if let Some(place) = self.descriptors.get_mut(self.count) {
            *place = descriptor;
        }
        self.count += 1;
    }

    /// Sends what is in it, if it is full or `now`.
    fn send(
        &mut self,
        now: bool,
        link: &Link,
        buffer: &mut MessageBuffer,
    ) -> Result<(), LinkState> {
        let enough = if now { 1 } else { HANDED_IN };
        if self.count < enough {
            return Ok(());
        }
        let arenas = self.arenas.get(..self.count).unwrap_or(&[]);
        let message = ToDaemon::Holds { arenas };
        // Either all of them have one or none has.
        let [Some(first), ..] = self.descriptors else {
            self.count = 0;
            return link.send(&message, buffer);
        };
        let descriptors = self.descriptors.map(|fd| fd.unwrap_or(first));
        let descriptors = descriptors.get(..self.count).unwrap_or(&[]);
        link.send_with(&message, descriptors, buffer)?;
        *self = Self::new();
        Ok(())
    }
}

/// Says which arenas are mapped, with the descriptors that were kept.
pub(super) fn hand_in(
    space: &Space,
    link: &Link,
    kept: &mut Kept,
    buffer: &mut MessageBuffer,
) -> Result<(), LinkState> {
    let_go(space, kept, &[]);
    if !link.version().names_arenas() {
        return Ok(());
    }
    let (mut with, mut without) = (Batch::new(), Batch::new());
    let mut from = 0;
    loop {
        let next = lock(space).states.arenas.next_mapped(from);
        let Some((own, inode)) = next else {
            break;
        };
        from = own.0 + 1;
        let arena = HeldArena {
            inode,
            tag: own.0,
            padding: 0,
        };
        let descriptor = kept.get(own, inode);
        let batch = if descriptor.is_some() {
            &mut with
        } else {
            &mut without
        };
        batch.push(arena, descriptor);
        batch.send(false, link, buffer)?;
    }
    with.send(true, link, buffer)?;
    without.send(true, link, buffer)
}

/// The daemon says what it calls arenas.
pub(super) fn take_names(space: &Space, names: &[NamedArena]) {
    let mut tables = lock(space);
    for named in names {
        tables.states.arenas.name(ArenaId(named.tag), named.arena);
    }
}

/// Keeps the descriptor of an arena.
pub(super) fn keep(space: &Space, kept: &mut Kept, name: ArenaId, fd: Option<OwnedFd>) {
    if let Some(fd) = fd {
        kept.keep(&lock(space).states.arenas, name, fd);
    }
}

/// Gives up the descriptors of arenas that are mapped no more, and the names of those that the daemon has let go.
pub(super) fn let_go(space: &Space, kept: &mut Kept, names: &[ArenaId]) {
    let mut tables = lock(space);
    for name in names {
        tables.states.arenas.forget_name(*name);
    }
    kept.let_go(&tables.states.arenas);
}

/// Gives up the descriptors of arenas whose last page has gone, unless the app is in the way now.
pub(super) fn let_go_of_empty(space: &Space, kept: &mut Kept) {
    if let Some(tables) = space.step(PATIENCE) {
        kept.let_go(&tables.states.arenas);
    }
}

/// Waits for the app to get out of the way, however long.
fn lock(space: &Space) -> Guard<'_, Tables> {
    loop {
        if let Some(tables) = space.step(PATIENCE) {
            return tables;
        }
    }
}
