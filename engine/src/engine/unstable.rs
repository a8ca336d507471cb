//! The unstable trees: calm pages that have not met an equal one yet.
//!
//! The kernel keeps them as trees ordered by bytes that nobody protects, one for each NUMA node if pages do not merge
//! across nodes, and throws them away at the start of every scan. Here each is an index by digest, which outlives the
//! scan: an entry of an earlier scan is in no tree, and gives way to the first page of this one that has its digest. An
//! item that has not been driven out this way has met nobody, so a visit that finds its page unchanged has nothing to look
//! up. The digest of each calm page is kept as well, so that it need not be hashed again.

use super::items::ItemRef;
use super::slab::Slab;
use crate::digest::Fingerprint;
use crate::page::NumaNode;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Known {
    fingerprint: Fingerprint,
    item: ItemRef,
}

/// The trees of a domain, and the digests of all calm pages that are not merged.
#[derive(Debug, Default)]
pub(crate) struct UnstableTrees {
    known: Slab<Known>,
    trees: BTreeMap<NumaNode, HashTable<u32>>,
}

/// What [`UnstableTrees::search_or_list`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An entry with the same digest, of this scan or an earlier one.
    Other(ItemRef),
    /// None, or the page's own; it is listed now.
    Listed,
}

impl UnstableTrees {
    /// Empties the index: nothing is listed. The digests stay.
    pub(crate) fn reset(&mut self) {
        self.trees.values_mut().for_each(HashTable::clear);
    }

    /// Gives back memory that only a burst of digests needed.
    pub(crate) fn give_back_memory(&mut self) {
        let known = &self.known;
        self.trees.retain(|_, tree| {
            if tree.capacity() / 4 > tree.len() {
                tree.shrink_to(0, |entry| entry_of(known, *entry).fingerprint.hash());
            }
            !tree.is_empty()
        });
    }

    /// Remembers the digest of a page; returns the entry.
    pub(crate) fn remember(&mut self, fingerprint: Fingerprint, item: ItemRef) -> u32 {
        self.known.insert(Known { fingerprint, item })
    }

    /// Forgets a digest, which must not be listed.
    pub(crate) fn forget(&mut self, entry: u32) {
        self.known.remove(entry);
    }

    /// Digests remembered.
    pub(crate) fn len(&self) -> u64 {
        self.known.len() as u64
    }

    /// The item of an entry.
    pub(crate) fn item(&self, entry: u32) -> ItemRef {
        entry_of(&self.known, entry).item
    }

    /// The digest of an entry.
    pub(crate) fn fingerprint(&self, entry: u32) -> Fingerprint {
        entry_of(&self.known, entry).fingerprint
    }

    /// Looks in the index of `node` for a page with the digest of `entry`; lists the page of `entry` if there is none.
    pub(crate) fn search_or_list(&mut self, node: NumaNode, entry: u32) -> Found {
        let fingerprint = self.fingerprint(entry);
        let known = &self.known;
        let place = self.trees.entry(node).or_default().entry(
            fingerprint.hash(),
            |other| entry_of(known, *other).fingerprint == fingerprint,
            |other| entry_of(known, *other).fingerprint.hash(),
        );
        match place {
            Entry::Occupied(found) if *found.get() == entry => Found::Listed,
            Entry::Occupied(found) => Found::Other(entry_of(known, *found.get()).item),
            Entry::Vacant(place) => {
                place.insert(entry);
                Found::Listed
            }
        }
    }

    /// Lists the page of `entry` in the place of the one with the same digest.
    pub(crate) fn list_instead(&mut self, node: NumaNode, entry: u32) {
        let fingerprint = self.fingerprint(entry);
        let same = |other: &u32| entry_of(&self.known, *other).fingerprint == fingerprint;
        let tree = self.trees.get_mut(&node);
        if let Some(place) = tree.and_then(|tree| tree.find_mut(fingerprint.hash(), same)) {
            *place = entry;
        }
    }

    /// Whether the page of `entry` is in the index of `node`.
    pub(crate) fn is_listed(&self, node: NumaNode, entry: u32) -> bool {
        let hash = self.fingerprint(entry).hash();
        let tree = self.trees.get(&node);
        tree.is_some_and(|tree| tree.find(hash, |other| *other == entry).is_some())
    }

    /// Pages in all indices.
    pub(crate) fn listed(&self) -> u64 {
        self.trees.values().map(|tree| tree.len() as u64).sum()
    }

    /// The page in the index of `node` with this digest.
    pub(crate) fn find(&self, node: NumaNode, fingerprint: &Fingerprint) -> Option<ItemRef> {
        let same = |other: &u32| entry_of(&self.known, *other).fingerprint == *fingerprint;
        let found = self.trees.get(&node)?.find(fingerprint.hash(), same)?;
        Some(entry_of(&self.known, *found).item)
    }

    /// Takes the page of `entry` out of the index of `node`, if it is there.
    pub(crate) fn unlist(&mut self, node: NumaNode, entry: u32) {
        let hash = self.fingerprint(entry).hash();
        let Some(tree) = self.trees.get_mut(&node) else {
            return;
        };
        if let Ok(found) = tree.find_entry(hash, |other| *other == entry) {
            found.remove();
        }
    }
}

fn entry_of(known: &Slab<Known>, entry: u32) -> &Known {
    known
        .get(entry)
        .expect("an entry lives as long as its item knows of it")
}
