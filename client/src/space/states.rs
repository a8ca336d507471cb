//! What is known of each registered page: its hash at the last visit, its slot, and a few flags.
//!
//! Kept apart from the regions, in tables of one GiB of address space each, because some of it outlives a registration:
//! a page inside one of our file mappings must be told from ordinary memory for as long as it is there. The tables are
//! reserved address space; only the parts that are used take memory. They are read and written under the lock, so their
//! atomics are plain loads and stores.

use super::arenas::ArenaTable;
use super::regions::Full;
use crate::sys::memory::place;
use bitflags::bitflags;
use ksm_engine::page::{ArenaId, PageRun, Slot};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use zerocopy::FromZeros;

/// Pages that one table covers.
const TABLE_PAGES: u64 = 1 << 18;
const TABLE_LEN: usize = 1 << 18;
const FLAGS_PER_WORD: usize = 8;
/// GiB of address space that can have registered pages.
const TABLES: usize = 4096;

bitflags! {
    /// What is known of a page. A page inside one of our file mappings has `MERGED` or `BROKEN`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// Its hash at the last visit is known.
        const SEEN = 1;
        /// Mapped to its slot; not written since, as far as we have looked.
        const MERGED = 2;
        /// Its digest was reported with the present hash.
        const KNOWN = 8;
        /// Was merged, and is a private copy now, in a mapping of the slot.
        const BROKEN = 16;
        /// We put the zero page there.
        const ZEROED = 32;
        /// `BROKEN`, and a visit has found it so, with the bytes it had at the one before.
        const RESTED = 64;
        /// `MERGED` or `KNOWN`, reported as such, and write-protected since before it was last looked at.
        const QUIET = 128;
    }
}

/// In a file mapping of ours.
pub const IN_FILE: Flags = Flags::MERGED.union(Flags::BROKEN);

#[derive(Debug, FromZeros)]
#[repr(C)]
struct Table {
    flags: [AtomicU64; TABLE_LEN / FLAGS_PER_WORD],
    hashes: [AtomicU32; TABLE_LEN],
    slots: [AtomicU64; TABLE_LEN],
}

#[derive(Debug, FromZeros)]
#[repr(C)]
struct Entry {
    /// Number of the table: page / `TABLE_PAGES`.
    number: u64,
    table: Option<&'static Table>,
}

/// All page states. All-zero bytes say that nothing is known of any page.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct States {
    count: usize,
    /// Sorted by number.
    entries: [Entry; TABLES],
    /// Pages with `ZEROED`.
    zeroed: u64,
    /// What slots are in.
    pub arenas: ArenaTable,
}

/// What is known of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState {
    /// The flags.
    pub flags: Flags,
    /// Hash at the last visit, or at the merge; 0 if unknown.
    pub hash: u32,
    /// For pages in a file mapping of ours; its arena by the number that we gave it.
    pub slot: Slot,
}

/// Pages of which something is known, all of them with [`Flags::QUIET`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quiet {
    /// Ordinary pages.
    pub known: u64,
    /// Merged ones.
    pub merged: u64,
}

impl Quiet {
    /// All of them.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.known + self.merged
    }
}

impl PageState {
    /// Nothing.
    pub const UNKNOWN: Self = Self {
        flags: Flags::empty(),
        hash: 0,
        slot: Slot {
            arena: ArenaId(0),
            index: 0,
        },
    };
}

impl States {
    /// Makes tables for the pages of `run`. Returns the memory of one new table at a time, until there are enough.
    ///
    /// # Errors
    /// `Ok(Err(Full))` if there are too many tables, else of `mmap`.
    pub fn grow(&mut self, run: PageRun) -> rustix::io::Result<Result<Option<PageRun>, Full>> {
        let last = (run.end() - 1) / TABLE_PAGES;
        let missing = (run.start / TABLE_PAGES..=last).find(|number| self.index(*number).is_err());
        let Some(number) = missing else {
            return Ok(Ok(None));
        };
        let (Err(index), true) = (self.index(number), self.count < TABLES) else {
            return Ok(Err(Full));
        };
        let table = place::<Table>()?;
        if let Some(tail) = self.entries.get_mut(index..=self.count) {
            tail.rotate_right(1);
        }
        if let Some(entry) = self.entries.get_mut(index) {
            entry.number = number;
            entry.table = Some(table);
        }
        self.count += 1;
        Ok(Ok(Some(crate::sys::memory::pages_of(table))))
    }

    /// What is known of a page.
    pub fn get(&self, page: u64) -> PageState {
        let Some((table, index)) = self.find(page) else {
            return PageState::UNKNOWN;
        };
        let flags = flags_at(table, index);
        if flags.is_empty() {
            return PageState::UNKNOWN;
        }
        let hash = table.hashes.get(index).map_or(0, |hash| hash.load(Relaxed));
        let slot = table.slots.get(index).map_or(0, |slot| slot.load(Relaxed));
        PageState {
            flags,
            hash,
            slot: slot_from(slot),
        }
    }

    /// Notes what is known of a page. Does nothing for pages outside all tables.
    pub fn set(&mut self, page: u64, state: PageState) {
        let Some((table, index)) = self.find(page) else {
            return;
        };
        let old = flags_at(table, index);
        let arena = |flags: Flags| {
            let slot = table.slots.get(index).map_or(0, |slot| slot.load(Relaxed));
            flags.intersects(IN_FILE).then_some(slot_from(slot).arena)
        };
        let before = arena(old);
        // Values before flags: the flags say which values count, and the agent can be killed in between. Who is mapped is
        // counted too often rather than too seldom meanwhile.
        if state.flags.intersects(IN_FILE) && before != Some(state.slot.arena) {
            self.arenas.count_in(state.slot.arena);
        }
        if let Some(hash) = table.hashes.get(index) {
            hash.store(state.hash, Relaxed);
        }
        if state.flags.intersects(IN_FILE)
            && let Some(slot) = table.slots.get(index)
        {
            slot.store(slot_into(state.slot), Relaxed);
        }
        match (
            old.contains(Flags::ZEROED),
            state.flags.contains(Flags::ZEROED),
        ) {
            (false, true) => self.zeroed += 1,
            (true, false) => self.zeroed = self.zeroed.saturating_sub(1),
            _ => {}
        }
        set_flags(table, index, state.flags);
        if let Some(before) = before
            && arena(state.flags) != Some(before)
        {
            self.arenas.count_out(before);
        }
    }

    /// Counts anew which arenas are mapped, after an agent that may have died while it did.
    pub fn recount_arenas(&mut self) {
        self.arenas.forget_counts();
        let mut rest = PageRun::EVERYTHING;
        while let Some(run) = self.first_in_file(rest) {
            for page in run.start..run.end() {
                let arena = self.get(page).slot.arena;
                self.arenas.count_in(arena);
            }
            rest = PageRun::between(run.end(), rest.end());
        }
    }

    /// Changes what is known of a page.
    pub fn update(&mut self, page: u64, change: impl FnOnce(&mut PageState)) {
        let mut state = self.get(page);
        change(&mut state);
        self.set(page, state);
    }

    /// Forgets a page.
    pub fn forget(&mut self, page: u64) {
        self.set(page, PageState::UNKNOWN);
    }

    /// The first page of `run` of which anything is known.
    pub fn first(&self, run: PageRun) -> Option<u64> {
        let mut page = run.start;
        while page < run.end() {
            let number = page / TABLE_PAGES;
            let place = match self.index(number) {
                Ok(place) => place,
                Err(next) => {
                    // No table here: go on where the next one begins.
                    let entry = self.entries.get(next).filter(|_| next < self.count)?;
                    page = entry.number * TABLE_PAGES;
                    continue;
                }
            };
            let table = self.entries.get(place).and_then(|entry| entry.table)?;
            let end = run.end().min((number + 1) * TABLE_PAGES);
            if let Some(found) = first_in(table, number, PageRun::between(page, end)) {
                return Some(found);
            }
            page = end;
        }
        None
    }

    /// The pages of `run` of which something is known; `None` if any of them is not quiet.
    pub fn quiet(&self, run: PageRun) -> Option<Quiet> {
        let mut quiet = Quiet::default();
        let mut at = run.start;
        while at < run.end() {
            let end = run.end().min((at / TABLE_PAGES + 1) * TABLE_PAGES);
            if let Ok(place) = self.index(at / TABLE_PAGES) {
                let table = self.entries.get(place).and_then(|entry| entry.table)?;
                let first = usize::try_from(at % TABLE_PAGES).ok()?;
                let count = usize::try_from(end - at).ok()?;
                add_quiet(table, first, first + count, &mut quiet)?;
            }
            at = end;
        }
        Some(quiet)
    }

    /// The first page of `run` with such flags.
    pub fn first_with(&self, run: PageRun, such: impl Fn(Flags) -> bool) -> Option<u64> {
        let mut at = run.start;
        loop {
            let page = self.first(PageRun::between(at, run.end()))?;
            if such(self.get(page).flags) {
                return Some(page);
            }
            at = page + 1;
        }
    }

    /// The first pages of `run` that are in a file mapping of ours, as far as they follow each other.
    pub fn first_in_file(&self, run: PageRun) -> Option<PageRun> {
        let in_file = |page: u64| self.get(page).flags.intersects(IN_FILE);
        let start = self.first_with(run, |flags| flags.intersects(IN_FILE))?;
        let end = (start..run.end()).find(|page| !in_file(*page));
        Some(PageRun::between(start, end.unwrap_or(run.end())))
    }

    /// Pages with a zero page of ours.
    pub fn zeroed(&self) -> u64 {
        self.zeroed
    }

    fn index(&self, number: u64) -> Result<usize, usize> {
        let entries = self.entries.get(..self.count).unwrap_or(&[]);
        entries.binary_search_by_key(&number, |entry| entry.number)
    }

    fn find(&self, page: u64) -> Option<(&'static Table, usize)> {
        let place = self.index(page / TABLE_PAGES).ok()?;
        let table = self.entries.get(place)?.table?;
        let index = usize::try_from(page % TABLE_PAGES).ok()?;
        Some((table, index))
    }
}

const EACH: u64 = 0x0101_0101_0101_0101;

/// Adds the pages `[from, to)` of a table, a word of flags at a time.
fn add_quiet(table: &Table, from: usize, to: usize, quiet: &mut Quiet) -> Option<()> {
    let words = table
        .flags
        .get(from / FLAGS_PER_WORD..to.div_ceil(FLAGS_PER_WORD))?;
    let mut at = from / FLAGS_PER_WORD * FLAGS_PER_WORD;
    for word in words {
        let mut flags = word.load(Relaxed);
        if at < from {
            flags &= u64::MAX << ((from - at) * 8);
        }
        if at + FLAGS_PER_WORD > to {
            flags &= u64::MAX >> ((at + FLAGS_PER_WORD - to) * 8);
        }
        at += FLAGS_PER_WORD;
        let any = (((flags & (EACH * 0x7F)) + EACH * 0x7F) | flags) & (EACH * 0x80);
        if flags & (EACH * u64::from(Flags::QUIET.bits())) != any {
            return None;
        }
        let merged = (flags & (EACH * u64::from(Flags::MERGED.bits()))).count_ones();
        quiet.merged += u64::from(merged);
        quiet.known += u64::from(any.count_ones() - merged);
    }
    Some(())
}

fn first_in(table: &Table, number: u64, run: PageRun) -> Option<u64> {
    let base = number * TABLE_PAGES;
    let words = FLAGS_PER_WORD as u64;
    let mut page = run.start;
    while page < run.end() {
        let index = usize::try_from(page - base).ok()?;
        let word = table.flags.get(index / FLAGS_PER_WORD)?.load(Relaxed);
        let rest = word >> (index % FLAGS_PER_WORD * 8);
        if rest == 0 {
            page = (page / words + 1) * words;
            continue;
        }
        let found = page + u64::from(rest.trailing_zeros() / 8);
        return (found < run.end()).then_some(found);
    }
    None
}

fn flags_at(table: &Table, index: usize) -> Flags {
    let word = table
        .flags
        .get(index / FLAGS_PER_WORD)
        .map_or(0, |word| word.load(Relaxed));
    let bytes = word.to_le_bytes();
    Flags::from_bits_truncate(*bytes.get(index % FLAGS_PER_WORD).unwrap_or(&0))
}

fn set_flags(table: &Table, index: usize, flags: Flags) {
    let Some(word) = table.flags.get(index / FLAGS_PER_WORD) else {
        return;
    };
    let mut bytes = word.load(Relaxed).to_le_bytes();
    if let Some(byte) = bytes.get_mut(index % FLAGS_PER_WORD) {
        *byte = flags.bits();
    }
    word.store(u64::from_le_bytes(bytes), Relaxed);
}

fn slot_into(slot: Slot) -> u64 {
    u64::from(slot.arena.0) << 32 | u64::from(slot.index)
}

fn slot_from(number: u64) -> Slot {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    Slot {
        arena: ArenaId(u32::from_be_bytes([a, b, c, d])),
        index: u32::from_be_bytes([e, f, g, h]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Placed;

    #[test]
    fn quiet_pages_are_counted_and_others_are_not_passed_over() {
        let mut states = Placed::<States>::new().expect("memory");
        let edge = TABLE_PAGES * 5;
        let run = PageRun::between(edge - 20, edge + 20);
        while states.grow(run).expect("memory").expect("room").is_some() {}
        let nothing = Quiet::default();
        assert_eq!(states.quiet(run), Some(nothing));
        let with = |flags| PageState {
            flags,
            ..PageState::UNKNOWN
        };
        for page in edge - 3..edge + 2 {
            states.set(page, with(Flags::KNOWN | Flags::SEEN | Flags::QUIET));
        }
        states.set(edge + 4, with(Flags::MERGED | Flags::QUIET));
        let quiet = |known, merged| Some(Quiet { known, merged });
        assert_eq!(states.quiet(run), quiet(5, 1));
        assert_eq!(
            states.quiet(PageRun::between(edge - 2, edge + 1)),
            quiet(3, 0)
        );
        states.set(edge + 9, with(Flags::SEEN));
        assert_eq!(states.quiet(run), None);
        assert_eq!(
            states.quiet(PageRun::between(edge - 20, edge + 9)),
            quiet(5, 1)
        );
        assert_eq!(
            states.quiet(PageRun::between(edge + 10, edge + 20)),
            Some(nothing)
        );
        assert_eq!(states.quiet(PageRun::between(edge + 9, edge + 10)), None);
    }

    #[test]
    fn keeps_states_across_tables_and_finds_the_next_one() {
        let mut states = Placed::<States>::new().expect("memory");
        let edge = TABLE_PAGES * 7;
        let run = PageRun::between(edge - 10, edge + 10);
        while let Some(own) = states.grow(run).expect("memory").expect("room") {
            assert!(own.len >= TABLE_PAGES * 13 / 4096);
        }
        assert_eq!(states.first(run), None);
        let state = PageState {
            flags: Flags::MERGED | Flags::SEEN,
            hash: 5,
            slot: Slot {
                arena: ArenaId(3),
                index: 9,
            },
        };
        for page in edge - 1..edge + 3 {
            states.set(page, state);
        }
        assert_eq!(states.get(edge), state);
        assert_eq!(states.first(run), Some(edge - 1));
        assert_eq!(
            states.first_in_file(run),
            Some(PageRun {
                start: edge - 1,
                len: 4
            })
        );
        let everywhere = PageRun::between(0, TABLE_PAGES * 100);
        assert_eq!(states.first(everywhere), Some(edge - 1));
        states.set(
            edge,
            PageState {
                flags: Flags::ZEROED,
                ..PageState::UNKNOWN
            },
        );
        assert_eq!(states.zeroed(), 1);
        states.forget(edge);
        assert_eq!((states.zeroed(), states.get(edge)), (0, PageState::UNKNOWN));
        // Pages without a table are unknown, and stay so.
        states.set(3, state);
        assert_eq!(states.get(3), PageState::UNKNOWN);
    }
}
