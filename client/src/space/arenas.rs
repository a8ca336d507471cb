//! The arenas whose slots this process has mapped.
//!
//! Daemons come and go, and each gives arenas numbers of its own; a forked child may meet another daemon than its parent.
//! So a page's slot is noted with the number that *we* gave its arena, and the arena by what nobody can change or use
//! again: its inode. What the present daemon calls it is known only once it has said so on the present connection.

use ksm_engine::page::ArenaId;
use zerocopy::FromZeros;

/// Arenas that a process can have mapped at one time.
pub const ARENAS: usize = 2048;

/// One arena.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Known {
    inode: u64,
    /// Pages in file mappings of it.
    pages: u64,
    /// The daemon's number.
    name: u32,
    /// Whether there is one.
    named: u32,
}

/// All of them. All-zero bytes are none.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct ArenaTable {
    count: usize,
    /// How often the last mapped page of one has gone.
    emptied: u64,
    known: [Known; ARENAS],
}

impl ArenaTable {
    fn all(&self) -> &[Known] {
        self.known.get(..self.count).unwrap_or(&[])
    }

    fn all_mut(&mut self) -> &mut [Known] {
        self.known.get_mut(..self.count).unwrap_or(&mut [])
    }

    fn get(&self, own: ArenaId) -> Option<&Known> {
        self.all().get(usize::try_from(own.0).ok()?)
    }

    fn get_mut(&mut self, own: ArenaId) -> Option<&mut Known> {
        let index = usize::try_from(own.0).ok()?;
        self.all_mut().get_mut(index)
    }

    /// Our number for the arena with this inode, which the daemon calls `name`. `None` if too many are mapped.
    pub fn enter(&mut self, inode: u64, name: ArenaId) -> Option<ArenaId> {
        let at = |all: &[Known], such: &dyn Fn(&Known) -> bool| all.iter().position(such);
        let index = at(self.all(), &|known| known.inode == inode)
            .or_else(|| at(self.all(), &|known| known.pages == 0))
            .or_else(|| {
                let next = self.count;
                self.count += usize::from(next < ARENAS);
                (next < ARENAS).then_some(next)
            })?;
        let known = self.known.get_mut(index)?;
        let pages = if known.inode == inode { known.pages } else { 0 };
        *known = Known {
            inode,
            pages,
            name: name.0,
            named: 1,
        };
        u32::try_from(index).ok().map(ArenaId)
    }

    /// The daemon has named one.
    pub fn name(&mut self, own: ArenaId, name: ArenaId) {
        if let Some(known) = self.get_mut(own) {
            known.name = name.0;
            known.named = 1;
        }
    }

    /// What the daemon calls an arena, if it has one of that name for us.
    pub fn name_of(&self, own: ArenaId) -> Option<ArenaId> {
        let known = self.get(own)?;
        (known.named != 0).then_some(ArenaId(known.name))
    }

    /// Our number for what the daemon calls `name`.
    pub fn named(&self, name: ArenaId) -> Option<ArenaId> {
        let is_it = |known: &Known| known.named != 0 && known.name == name.0;
        let index = self.all().iter().position(is_it)?;
        u32::try_from(index).ok().map(ArenaId)
    }

    /// The daemon has let it go.
    pub fn forget_name(&mut self, name: ArenaId) {
        if let Some(own) = self.named(name)
            && let Some(known) = self.get_mut(own)
        {
            known.named = 0;
        }
    }

    /// There is no daemon, or another one.
    pub fn forget_names(&mut self) {
        for known in self.all_mut() {
            known.named = 0;
        }
    }

    /// The first arena from number `from` on that has pages mapped, and its inode.
    pub fn next_mapped(&self, from: u32) -> Option<(ArenaId, u64)> {
        let known = (0..).zip(self.all()).skip(usize::try_from(from).ok()?);
        let mut mapped = known.filter(|(_, known)| known.pages > 0);
        mapped
            .next()
            .map(|(own, known)| (ArenaId(own), known.inode))
    }

    /// Whether pages of the arena with this number and inode are mapped.
    pub fn is_mapped(&self, own: ArenaId, inode: u64) -> bool {
        self.get(own)
            .is_some_and(|known| known.inode == inode && known.pages > 0)
    }

    /// The inode of an arena.
    pub fn inode_of(&self, own: ArenaId) -> Option<u64> {
        self.get(own).map(|known| known.inode)
    }

    /// A page more is in a file mapping of it.
    pub(super) fn count_in(&mut self, own: ArenaId) {
        if let Some(known) = self.get_mut(own) {
            known.pages += 1;
        }
    }

    /// A page fewer is.
    pub(super) fn count_out(&mut self, own: ArenaId) {
        let emptied = self.get_mut(own).is_some_and(|known| {
            known.pages = known.pages.saturating_sub(1);
            known.pages == 0
        });
        self.emptied += u64::from(emptied);
    }

    /// Another number after the last mapped page of any arena has gone.
    pub fn emptied(&self) -> u64 {
        self.emptied
    }

    pub(super) fn forget_counts(&mut self) {
        for known in self.all_mut() {
            known.pages = 0;
        }
        self.emptied += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Placed;

    #[test]
    fn numbers_are_ours_and_names_are_the_daemons() {
        let mut table = Placed::<ArenaTable>::new().expect("memory");
        let first = table.enter(100, ArenaId(7)).expect("room");
        table.count_in(first);
        let second = table.enter(200, ArenaId(8)).expect("room");
        table.count_in(second);
        assert_ne!(first, second);
        assert_eq!(table.enter(100, ArenaId(7)), Some(first));
        assert_eq!(table.name_of(first), Some(ArenaId(7)));
        assert_eq!(table.named(ArenaId(8)), Some(second));
        // Another daemon, which has the same numbers for other arenas.
        table.forget_names();
        assert_eq!(table.name_of(first), None);
        assert_eq!(table.named(ArenaId(7)), None);
        table.name(second, ArenaId(7));
        assert_eq!(table.named(ArenaId(7)), Some(second));
        table.forget_name(ArenaId(7));
        assert_eq!(table.name_of(second), None);
        assert_eq!(table.next_mapped(0), Some((first, 100)));
        assert_eq!(table.next_mapped(first.0 + 1), Some((second, 200)));
    }

    #[test]
    fn the_number_of_an_arena_that_is_not_mapped_any_more_is_given_to_another() {
        let mut table = Placed::<ArenaTable>::new().expect("memory");
        let own: Vec<_> = (0..)
            .map_while(|inode| {
                table
                    .enter(inode, ArenaId(0))
                    .inspect(|own| table.count_in(*own))
            })
            .collect();
        assert_eq!(own.len(), ARENAS);
        table.count_out(own[77]);
        assert!(!table.is_mapped(own[77], 77));
        assert_eq!(table.enter(1 << 40, ArenaId(1)), Some(own[77]));
        assert_eq!(table.inode_of(own[77]), Some(1 << 40));
        assert_eq!(table.next_mapped(own[77].0), Some((own[78], 78)));
    }
}
