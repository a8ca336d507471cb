//! Descriptors of the arenas that are mapped here, kept for a daemon that comes after the present one.
//!
//! No process may get a descriptor from its own mapping, so one is kept of each arena, in the agent's table, which is not
//! the app's and does not count against its limit. A descriptor keeps all of an arena's memory: so none is kept that is
//! not mapped here any more.

use crate::space::arenas::ArenaTable;
use ksm_engine::page::ArenaId;
use rustix::process::Resource;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most that are kept. Those of further arenas are not: another process may have them.
pub const KEPT: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct Kept {
    /// In the place of our number for the arena: its inode, and the descriptor.
    arenas: [Option<(u64, OwnedFd)>; KEPT],
    most: usize,
    /// What [`ArenaTable::emptied`] was when those of arenas that are not mapped were closed last.
    emptied: u64,
}

impl Kept {
    /// None. At most a quarter of the descriptors that the calling task may have will be kept.
    #[must_use]
    pub fn new() -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile).current;
        let quarter = limit.map_or(KEPT, |limit| usize::try_from(limit / 4).unwrap_or(KEPT));
        Self {
            arenas: [const { None }; KEPT],
            most: quarter.min(KEPT),
            emptied: 0,
        }
    }

    /// Keeps the descriptor of what the daemon calls `name`, if it is mapped and none is kept yet.
    pub fn keep(&mut self, known: &ArenaTable, name: ArenaId, fd: OwnedFd) {
        let Some(own) = known.named(name) else {
            return;
        };
        let Some(inode) = known
            .inode_of(own)
            .filter(|inode| known.is_mapped(own, *inode))
        else {
            return;
        };
        let place = usize::try_from(own.0).unwrap_or(KEPT);
        let Some(place) = self
            .arenas
            .get_mut(..self.most)
            .and_then(|all| all.get_mut(place))
        else {
            return;
        };
        if place.as_ref().is_none_or(|(kept, _)| *kept != inode) {
            *place = Some((inode, fd));
        }
    }

    /// The descriptor of an arena.
    #[must_use]
    pub fn get(&self, own: ArenaId, inode: u64) -> Option<BorrowedFd<'_>> {
        let place = self.arenas.get(usize::try_from(own.0).ok()?)?;
        let (kept, fd) = place.as_ref()?;
        (*kept == inode).then(|| fd.as_fd())
    }

    /// Closes those of arenas that are not mapped any more.
    pub fn let_go(&mut self, known: &ArenaTable) {
        if std::mem::replace(&mut self.emptied, known.emptied()) == known.emptied() {
            return;
        }
        for (own, place) in (0..).zip(&mut self.arenas) {
            let is_mapped = |kept: &(u64, OwnedFd)| known.is_mapped(ArenaId(own), kept.0);
            if !place.as_ref().is_some_and(is_mapped) {
                *place = None;
            }
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::states::{Flags, PageState, States};
    use crate::sys::memory::Placed;
    use ksm_engine::page::{PageRun, Slot};
    use rustix::fs::MemfdFlags;

    #[test]
    fn what_is_mapped_is_kept_and_let_go_with_its_last_page() {
        let mut states = Placed::<States>::new().expect("memory");
        let run = PageRun {
            start: 1000,
            len: 8,
        };
        while states.grow(run).expect("memory").expect("room").is_some() {}
        let memfd = |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).expect("one");
        let (name, inode) = (ArenaId(70), 42);
        let own = states.arenas.enter(inode, name).expect("room");
        let mut kept = Kept::new();
        kept.keep(&states.arenas, name, memfd("early"));
        assert!(kept.get(own, inode).is_none(), "nothing is mapped yet");
        let merged = PageState {
            flags: Flags::MERGED,
            hash: 0,
            slot: Slot {
                arena: own,
                index: 3,
            },
        };
        states.set(1001, merged);
        states.set(1002, merged);
        kept.keep(&states.arenas, name, memfd("kept"));
        kept.keep(&states.arenas, ArenaId(71), memfd("nobody's"));
        assert!(kept.get(own, inode).is_some() && kept.get(own, 43).is_none());
        states.update(1001, |state| state.flags = Flags::BROKEN);
        states.forget(1002);
        kept.let_go(&states.arenas);
        assert!(
            kept.get(own, inode).is_some(),
            "a broken page is in its mapping"
        );
        states.recount_arenas();
        assert_eq!(states.arenas.next_mapped(0), Some((own, inode)));
        states.forget(1001);
        kept.let_go(&states.arenas);
        assert!(kept.get(own, inode).is_none());
        assert_eq!(states.arenas.next_mapped(0), None);
    }
}
