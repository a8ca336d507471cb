//! The stable tree: merged pages, found by content.
//!
//! A [`StableNode`] is one merged page: the slot that holds its bytes, and the list of rmap items that are mapped to
//! it (the reverse mapping). At most `max_page_sharing` items hang on one node. Beyond that a second dimension
//! begins: a *chain* takes the node's place in the tree, and *dups* with the same content hang below it. The tree
//! itself never holds one content twice, and a look-up costs the same however many dups there are.

use super::items::ItemRef;
use super::slab::Slab;
use super::unstable::hash_of;
use crate::page::{Digest, Slot};
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::time::Duration;

/// Number of a stable node in its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(pub(crate) u32);

/// One merged page.
#[derive(Debug)]
pub(crate) struct StableNode {
    pub(crate) digest: Digest,
    /// Where its bytes are; `None` while they are still on their way from the donor.
    pub(crate) slot: Option<Slot>,
    /// The chain it is a dup of.
    chain: Option<u32>,
    /// The rmap items mapped to it.
    pub(crate) items: SmallVec<[ItemRef; 2]>,
    /// How many of them are known to be mapped.
    pub(crate) mapped: u32,
}

/// A chain head: all dups hold the same bytes.
#[derive(Debug)]
struct Chain {
    digest: Digest,
    /// When its stale dups were last looked for.
    pruned: Duration,
    /// The dups, head of the list last.
    dups: Vec<NodeId>,
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
    pub(crate) prune_after: Duration,
}

impl SearchRules {
    fn has_room(&self, node: &StableNode, more: usize) -> bool {
        !node.items.is_empty() && node.items.len() + more <= self.max_page_sharing as usize
    }
}

/// All merged pages of a domain.
#[derive(Debug, Default)]
pub(crate) struct StableTree {
    nodes: Slab<StableNode>,
    chains: Slab<Chain>,
    index: HashTable<PackedRoot>,
    /// Chains that have lost all dups but one, or all.
    short_chains: Vec<u32>,
    dups: u64,
    steps: u64,
}

impl StableTree {
    /// Chain heads in the tree (`stable_node_chains`).
    pub(crate) fn chain_count(&self) -> u64 {
        self.chains.len() as u64
    }

    /// Nodes below chain heads (`stable_node_dups`).
    pub(crate) fn dup_count(&self) -> u64 {
        self.dups
    }

    /// Dups that searches have looked at, ever: what the complexity tests count.
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

    fn chain(&self, id: u32) -> &Chain {
        self.chains
            .get(id)
            .expect("chain ids are given up with their chain")
    }

    fn chain_mut(&mut self, id: u32) -> &mut Chain {
        self.chains
            .get_mut(id)
            .expect("chain ids are given up with their chain")
    }

    fn root_digest(&self, root: Root) -> Digest {
        match root {
            Root::Node(id) => self.node(id).digest,
            Root::Chain(id) => self.chain(id).digest,
        }
    }

    fn root(&self, digest: &Digest) -> Option<Root> {
        let same = |root: &PackedRoot| self.root_digest(root.unpack()) == *digest;
        self.index
            .find(hash_of(digest), same)
            .map(|root| root.unpack())
    }

    fn set_root(&mut self, digest: &Digest, new: Option<Root>) {
        let mut index = std::mem::take(&mut self.index);
        let same = |root: &PackedRoot| self.root_digest(root.unpack()) == *digest;
        if let Ok(old) = index.find_entry(hash_of(digest), same) {
            old.remove();
        }
        if let Some(new) = new {
            let hash = |root: &PackedRoot| hash_of(&self.root_digest(root.unpack()));
            index.insert_unique(hash_of(digest), PackedRoot::pack(new), hash);
        }
        self.index = index;
    }

    /// A node with this content and room for one more item.
    pub(crate) fn search(&mut self, digest: &Digest, rules: &SearchRules) -> Option<NodeId> {
        self.dissolve_short_chains();
        let best = match self.root(digest)? {
            Root::Node(id) => id,
            Root::Chain(chain) => self.best_dup(chain, rules)?,
        };
        rules.has_room(self.node(best), 1).then_some(best)
    }

    /// A chain with one dup left is a plain node again, one without dups is nothing. The kernel's searches do that to
    /// all chains that they pass on their way down the tree; here a search passes none but its own, so the first one
    /// that comes does it to all.
    fn dissolve_short_chains(&mut self) {
        for id in std::mem::take(&mut self.short_chains) {
            let Some(chain) = self.chains.get(id) else {
                continue;
            };
            match chain.dups[..] {
                [] => self.remove_chain(id, None),
                [last] => self.remove_chain(id, Some(last)),
                _ => {}
            }
        }
    }

    /// Chooses a dup as the kernel does: the first with room, or, when the chain is due for pruning, the fullest with
    /// room.
    fn best_dup(&mut self, chain: u32, rules: &SearchRules) -> Option<NodeId> {
        let prune = rules.now >= self.chain(chain).pruned.saturating_add(rules.prune_after);
        if prune {
            self.chain_mut(chain).pruned = rules.now;
        }
        let mut best: Option<NodeId> = None;
        let mut steps = 0;
        for dup in self.chain(chain).dups.iter().rev().copied() {
            steps += 1;
            let better = best.is_none_or(|best| {
                rules.has_room(self.node(dup), 1)
                    && (!rules.has_room(self.node(best), 1)
                        || self.node(dup).items.len() > self.node(best).items.len())
            });
            if better {
                best = Some(dup);
                if !prune && rules.has_room(self.node(dup), 1) {
                    break;
                }
            }
        }
        self.steps += steps;
        let best = best?;
        if self.chain(chain).dups.last() != Some(&best) && rules.has_room(self.node(best), 2) {
            let dups = &mut self.chain_mut(chain).dups;
            dups.retain(|dup| *dup != best);
            dups.push(best);
        }
        Some(best)
    }

    fn remove_chain(&mut self, chain: u32, heir: Option<NodeId>) {
        let digest = self.chain(chain).digest;
        self.set_root(&digest, heir.map(Root::Node));
        if let Some(heir) = heir {
            self.node_mut(heir).chain = None;
            self.dups -= 1;
        }
        self.chains.remove(chain);
    }

    /// Adds a merged page without items; beside one of equal content it becomes a dup, at the head of the chain.
    pub(crate) fn insert(&mut self, digest: Digest, slot: Option<Slot>, now: Duration) -> NodeId {
        let node = StableNode {
            digest,
            slot,
            chain: None,
            items: SmallVec::new(),
            mapped: 0,
        };
        let id = NodeId(self.nodes.insert(node));
        let Some(root) = self.root_but(&digest, id) else {
            self.set_root(&digest, Some(Root::Node(id)));
            return id;
        };
        let chain = match root {
            Root::Chain(chain) => chain,
            Root::Node(first) => self.make_chain(digest, first, now),
        };
        self.chain_mut(chain).dups.push(id);
        self.node_mut(id).chain = Some(chain);
        self.dups += 1;
        id
    }

    /// The root of this content; `new` is not in the index yet.
    fn root_but(&self, digest: &Digest, new: NodeId) -> Option<Root> {
        self.root(digest).filter(|root| *root != Root::Node(new))
    }

    fn make_chain(&mut self, digest: Digest, first: NodeId, now: Duration) -> u32 {
        let chain = Chain {
            digest,
            pruned: now,
            dups: vec![first],
        };
        let id = self.chains.insert(chain);
        self.set_root(&digest, Some(Root::Chain(id)));
        self.node_mut(first).chain = Some(id);
        self.dups += 1;
        id
    }

    /// Removes a node without items. Its chain stays, even empty, until the next search.
    pub(crate) fn remove(&mut self, id: NodeId) -> StableNode {
        match self.node(id).chain {
            Some(chain) => {
                let dups = &mut self.chain_mut(chain).dups;
                dups.retain(|dup| *dup != id);
                if dups.len() <= 1 {
                    self.short_chains.push(chain);
                }
                self.dups -= 1;
            }
            None => {
                let digest = self.node(id).digest;
                self.set_root(&digest, None);
            }
        }
        self.nodes.remove(id.0).expect("it was there above")
    }

    /// Removes chain heads that have no dups left.
    pub(crate) fn remove_empty_chains(&mut self) {
        let empty = |(id, chain): (u32, &Chain)| chain.dups.is_empty().then_some(id);
        let empty: Vec<u32> = self.chains.iter().filter_map(empty).collect();
        for chain in empty {
            self.remove_chain(chain, None);
        }
    }
}
