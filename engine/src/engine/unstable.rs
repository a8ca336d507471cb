//! The unstable trees: calm pages that have not met an equal one yet.
//!
//! The kernel keeps them as trees ordered by bytes that nobody protects, one for each NUMA node if pages do not merge
//! across nodes, and throws them away at the start of every scan. Here each is an index by digest, which outlives the
//! scan: an entry of an earlier scan is in no tree, and gives way to the first page of this one that has its digest. An
//! item that has not been driven out this way has met nobody, so a visit that finds its page unchanged has nothing to look
//! up. The digest of each calm page is kept as well, so that it need not be hashed again.

use super::items::ItemRef;
use super::slab::Slab;
use crate::page::{Digest, NumaNode};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Known {
    digest: Digest,
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

/// A digest is uniformly distributed: eight bytes of it are as good a hash as any.
pub(crate) fn hash_of(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl UnstableTrees {
    /// Empties the index: nothing is listed. The digests stay.
    pub(crate) fn reset(&mut self) {
        self.trees.values_mut().for_each(HashTable::clear);
    }

    /// Gives back memory that only a burst of digests needed.
    pub(crate) fn give_back_memory(&mut self) {
        if self.known.len() == 0 {
            self.trees = BTreeMap::default();
        }
    }

    /// Remembers the digest of a page; returns the entry.
    pub(crate) fn remember(&mut self, digest: Digest, item: ItemRef) -> u32 {
        self.known.insert(Known { digest, item })
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
    pub(crate) fn digest(&self, entry: u32) -> Digest {
        entry_of(&self.known, entry).digest
    }

    /// Looks in the index of `node` for a page with the digest of `entry`; lists the page of `entry` if there is none.
    pub(crate) fn search_or_list(&mut self, node: NumaNode, entry: u32) -> Found {
        let digest = self.digest(entry);
        let known = &self.known;
        let place = self.trees.entry(node).or_default().entry(
            hash_of(&digest),
            |other| entry_of(known, *other).digest == digest,
            |other| hash_of(&entry_of(known, *other).digest),
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
        let digest = self.digest(entry);
        let same = |other: &u32| entry_of(&self.known, *other).digest == digest;
        let tree = self.trees.get_mut(&node);
        if let Some(place) = tree.and_then(|tree| tree.find_mut(hash_of(&digest), same)) {
            *place = entry;
        }
    }

    /// Whether the page of `entry` is in the index of `node`.
    pub(crate) fn is_listed(&self, node: NumaNode, entry: u32) -> bool {
        let hash = hash_of(&self.digest(entry));
        let tree = self.trees.get(&node);
        tree.is_some_and(|tree| tree.find(hash, |other| *other == entry).is_some())
    }

    /// Pages in all indices.
    pub(crate) fn listed(&self) -> u64 {
        self.trees.values().map(|tree| tree.len() as u64).sum()
    }

    /// The page in the index of `node` with this digest.
    pub(crate) fn find(&self, node: NumaNode, digest: &Digest) -> Option<ItemRef> {
        let same = |other: &u32| entry_of(&self.known, *other).digest == *digest;
        let found = self.trees.get(&node)?.find(hash_of(digest), same)?;
        Some(entry_of(&self.known, *found).item)
    }

    /// Takes the page of `entry` out of the index of `node`, if it is there.
    pub(crate) fn unlist(&mut self, node: NumaNode, entry: u32) {
        let hash = hash_of(&self.digest(entry));
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
