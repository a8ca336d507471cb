//! The stable trees: merged pages, found by content.
//!
//! A [`StableNode`] is one merged page: the slot that holds its bytes, and the list of rmap items that are mapped to
//! it (the reverse mapping). At most `max_page_sharing` items hang on one node. Beyond that a second dimension
//! begins: a *chain* takes the node's place in the tree, and *dups* with the same content hang below it. The tree
//! itself never holds one content twice, and a look-up costs the same however many dups there are.
//!
//! There is one tree for each NUMA node if pages do not merge across nodes, else one. What a list of dups goes through is in
//! `chain.rs`.

mod chain;

use super::items::ItemRef;
use super::slab::Slab;
use crate::digest::Fingerprint;
use crate::page::{NumaNode, Slot};
use chain::{Chain, Dup};
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::time::Duration;

/// Number of a stable node in its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// One merged page.
#[derive(Debug)]
pub(crate) struct StableNode {
    pub(crate) fingerprint: Fingerprint,
    /// Where its bytes are; `None` while they are still on their way from the donor.
    pub(crate) slot: Option<Slot>,
    /// Its place in a chain, if it is a dup.
    dup: Option<Box<Dup>>,
    /// The reverse mapping: the rmap items mapped to it.
    items: SmallVec<[ItemRef; 2]>,
    /// How many of them are known to be mapped.
    pub(crate) mapped: u32,
    /// How many of them are of processes that live. Without any it is stale, as a kernel's node whose page was freed.
    living: u32,
    /// The NUMA node whose tree it is in.
    pub(crate) numa: NumaNode,
}

impl StableNode {
    pub(crate) fn items(&self) -> &[ItemRef] {
        &self.items
    }

    /// Items of processes that live.
    pub(crate) fn living(&self) -> u32 {
        self.living
    }

    /// Everybody who shared it is gone, and only the scan has not been there yet to say so.
    pub(crate) fn is_stale(&self) -> bool {
        !self.items.is_empty() && self.living == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Node(NodeId),
    Chain(u32),
}

/// A root in four bytes: there is one for each merged content.
#[derive(Clone, Copy, Debug)]
struct PackedRoot(u32);

const CHAIN: u32 = 1 << 31;

impl PackedRoot {
    fn pack(root: Root) -> Self {
        match root {
            Root::Node(NodeId(id)) => {
                assert!(id & CHAIN == 0, "fewer than 2^31 merged pages");
                Self(id)
            }
            Root::Chain(id) => Self(id | CHAIN),
        }
    }

    fn unpack(self) -> Root {
        if self.0 & CHAIN == 0 {
            Root::Node(NodeId(self.0))
        } else {
            Root::Chain(self.0 & !CHAIN)
        }
    }
}

/// The limits that a search goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchRules {
    pub(crate) now: Duration,
    pub(crate) max_page_sharing: u32,
    /// `stable_node_chains_prune_millisecs`
    pub(crate) prune_after: Duration,
}

impl SearchRules {
    fn has_room(&self, node: &StableNode, more: usize) -> bool {
        !node.items.is_empty() && node.items.len() + more <= self.max_page_sharing as usize
    }
}

/// What [`StableTrees::search`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// A node with this content and room for one more item.
    Room(NodeId),
    /// None with room.
    Full,
    /// None.
    Nothing,
    /// A stale node was in the way: it is to be removed with its items, and the search begun anew.
    Stale(NodeId),
}

/// All merged pages of a domain.
#[derive(Debug, Default)]
pub(crate) struct StableTrees {
    nodes: Slab<StableNode>,
    chains: Slab<Chain>,
    trees: BTreeMap<NumaNode, HashTable<PackedRoot>>,
    /// Chains that have lost all dups but one, or all.
    short_chains: Vec<u32>,
    dups: u64,
    steps: u64,
}

impl StableTrees {
    /// Chain heads in the tree (`stable_node_chains`).
    pub(crate) fn chain_count(&self) -> u64 {
        self.chains.len() as u64
    }

    /// Nodes below chain heads (`stable_node_dups`).
    pub(crate) fn dup_count(&self) -> u64 {
        self.dups
    }

    /// Roots, dups and links of lists of dups that were ever looked at: what the complexity tests count.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// All nodes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &StableNode)> {
        self.nodes.iter().map(|(id, node)| (NodeId(id), node))
    }

    pub(crate) fn node(&self, id: NodeId) -> &StableNode {
        self.nodes
            .get(id.0)
            .expect("node ids are given up with their node")
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut StableNode {
        self.nodes
            .get_mut(id.0)
            .expect("node ids are given up with their node")
    }

    fn root_key(&self, root: Root) -> (NumaNode, Fingerprint) {
        match root {
            Root::Node(id) => (self.node(id).numa, self.node(id).fingerprint),
            Root::Chain(id) => (self.chain(id).numa, self.chain(id).fingerprint),
        }
    }

    fn root(&self, numa: NumaNode, fingerprint: &Fingerprint) -> Option<Root> {
        let same = |root: &PackedRoot| self.root_key(root.unpack()).1 == *fingerprint;
        let tree = self.trees.get(&numa)?;
        tree.find(fingerprint.hash(), same)
            .map(|root| root.unpack())
    }

    fn set_root(&mut self, numa: NumaNode, fingerprint: &Fingerprint, new: Option<Root>) {
        self.steps += 1;
        let mut tree = std::mem::take(self.trees.entry(numa).or_default());
        let same = |root: &PackedRoot| self.root_key(root.unpack()).1 == *fingerprint;
        if let Ok(old) = tree.find_entry(fingerprint.hash(), same) {
            old.remove();
        }
        if let Some(new) = new {
            let hash = |root: &PackedRoot| self.root_key(root.unpack()).1.hash();
            tree.insert_unique(fingerprint.hash(), PackedRoot::pack(new), hash);
        }
        self.trees.insert(numa, tree);
    }

    /// Looks for a merged page with this content.
    pub(crate) fn search(
        &mut self,
        numa: NumaNode,
        fingerprint: &Fingerprint,
        rules: &SearchRules,
    ) -> Search {
        self.dissolve_short_chains();
        self.steps += 1;
        let found = match self.root(numa, fingerprint) {
            None => return Search::Nothing,
            Some(Root::Node(id)) if self.node(id).is_stale() => Search::Stale(id),
            Some(Root::Node(id)) => Search::Room(id),
            Some(Root::Chain(chain)) => self.best_dup(chain, rules),
        };
        match found {
            Search::Room(id) if !rules.has_room(self.node(id), 1) => Search::Full,
            Search::Nothing => Search::Full,
            found => found,
        }
    }

    /// Adds a merged page without items; beside one of equal content it becomes a dup, at the head of the chain.
    pub(crate) fn insert(
        &mut self,
        numa: NumaNode,
        fingerprint: Fingerprint,
        slot: Option<Slot>,
        now: Duration,
    ) -> NodeId {
        let root = self.root(numa, &fingerprint);
        let id = NodeId(self.nodes.insert(StableNode {
            fingerprint,
            slot,
            dup: None,
            items: SmallVec::new(),
            mapped: 0,
            living: 0,
            numa,
        }));
        match root {
            None => self.set_root(numa, &fingerprint, Some(Root::Node(id))),
            Some(Root::Chain(chain)) => self.push_dup(chain, id),
            Some(Root::Node(first)) => {
                let chain = self.make_chain(first, now);
                self.push_dup(chain, id);
            }
        }
        id
    }

    /// Removes a node without items. Its chain stays, even empty, until the next search.
    pub(crate) fn remove(&mut self, id: NodeId) -> StableNode {
        if self.node(id).dup.is_some() {
            self.unlink_dup(id);
        } else {
            let (numa, fingerprint) = self.root_key(Root::Node(id));
            self.set_root(numa, &fingerprint, None);
        }
        self.nodes.remove(id.0).expect("it was there above")
    }

    /// Adds an item to a node; returns its place in the list.
    pub(crate) fn attach(&mut self, id: NodeId, item: ItemRef, living: bool) -> u32 {
        self.count_sharers(id, 1);
        let node = self.node_mut(id);
        let position = u32::try_from(node.items.len()).expect("fewer than 2^32 sharers");
        node.items.push(item);
        node.living += u32::from(living);
        position
    }

    /// Takes the item at a place of the list out; returns the one that is there now.
    pub(crate) fn detach(&mut self, id: NodeId, position: u32, living: bool) -> Option<ItemRef> {
        self.count_sharers(id, -1);
        let node = self.node_mut(id);
        node.items.swap_remove(position as usize);
        node.living -= u32::from(living);
        node.items.get(position as usize).copied()
    }

    /// The process of an attached item has ended.
    pub(crate) fn bereave(&mut self, id: NodeId) {
        self.node_mut(id).living -= 1;
    }

    /// Whether the trees agree with the nodes and chains: every content once in its tree, every list linked both ways
    /// and of one content.
    ///
    /// # Errors
    /// Says what does not agree.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut roots = 0;
        for (numa, tree) in &self.trees {
            let mut contents = std::collections::BTreeSet::new();
            for root in tree {
                roots += 1;
                let (own, fingerprint) = self.root_key(root.unpack());
                if own != *numa || !contents.insert(fingerprint.hash()) {
                    return Err(format!("{root:?} is twice in a tree, or in another's"));
                }
            }
        }
        let plain = self.nodes.iter().filter(|(_, node)| node.dup.is_none());
        let wanted = plain.count() + self.chains.len();
        if roots != wanted {
            return Err(format!("{roots} roots of {wanted} plain nodes and chains"));
        }
        self.audit_chains()
    }
}

#[cfg(test)]
mod tests;
