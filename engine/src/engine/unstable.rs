//! The unstable trees: calm pages that have not met an equal one yet.
//!
//! The kernel keeps them as trees ordered by bytes that nobody protects, one for each NUMA node if pages do not merge
//! across nodes, and throws them away at the start of every scan. Here each is an index by digest. They are emptied at
//! the start of every scan just the same; what is kept is the digest of each calm page, so that a page that did not
//! change need not be hashed again.

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

/// What [`UnstableTrees::search_or_insert`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An equal page.
    Equal(ItemRef),
    /// None; the page is in the tree now.
    Inserted,
}

/// A digest is uniformly distributed: eight bytes of it are as good a hash as any.
pub(crate) fn hash_of(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl UnstableTrees {
    /// Empties the trees, at the start of a scan. The digests stay.
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

    /// Forgets a digest; its item must not be in a tree.
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

    /// Looks in the tree of `node` for a page with the digest of `entry`; puts the page of `entry` there if there is none.
    pub(crate) fn search_or_insert(&mut self, node: NumaNode, entry: u32) -> Found {
        let digest = self.digest(entry);
        let known = &self.known;
        let place = self.trees.entry(node).or_default().entry(
            hash_of(&digest),
            |other| entry_of(known, *other).digest == digest,
            |other| hash_of(&entry_of(known, *other).digest),
        );
        match place {
            Entry::Occupied(found) => Found::Equal(entry_of(known, *found.get()).item),
            Entry::Vacant(place) => {
                place.insert(entry);
                Found::Inserted
            }
        }
    }

    /// Takes the page of `entry` out of the tree of `node`, if it is there.
    pub(crate) fn remove(&mut self, node: NumaNode, entry: u32) {
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
