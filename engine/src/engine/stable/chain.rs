//! Chains: the second dimension of the stable tree, above `max_page_sharing`.
//!
//! All dups of a chain hold the same write-protected bytes. They are a doubly linked list, so that adding one at the head,
//! taking one out and moving one to the head cost the same however long it is; only choosing among them walks it. The
//! best dup is kept at the head, so that most choices end at the first step.

use super::{NodeId, Root, Search, SearchRules, StableTrees};
use crate::digest::Fingerprint;
use crate::page::NumaNode;
use std::time::Duration;

/// A chain head.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) fingerprint: Fingerprint,
    pub(super) numa: NumaNode,
    /// When all of it was last walked (`stable_node_chains_prune_millisecs`).
    pruned: Duration,
    /// The head of the list of dups.
    head: Option<NodeId>,
    /// Their number.
    dups: u32,
    /// Items on all of them.
    sharers: u64,
    /// The dup that refiling fills.
    filling: Option<NodeId>,
}

/// A node's place in its chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dup {
    chain: u32,
    towards_head: Option<NodeId>,
    towards_tail: Option<NodeId>,
}

impl StableTrees {
    pub(super) fn chain(&self, id: u32) -> &Chain {
        self.chains
            .get(id)
            .expect("chain ids are given up with their chain")
    }

    fn chain_mut(&mut self, id: u32) -> &mut Chain {
        self.chains
            .get_mut(id)
            .expect("chain ids are given up with their chain")
    }

    fn dup(&self, id: NodeId) -> Dup {
        **self.node(id).dup.as_ref().expect("only asked of dups")
    }

    fn dup_mut(&mut self, id: NodeId) -> &mut Dup {
        self.node_mut(id).dup.as_mut().expect("only asked of dups")
    }

    /// The dups of a chain, from the head of its list.
    fn dups_of(&self, chain: u32) -> impl Iterator<Item = NodeId> {
        let next = |id: &NodeId| self.dup(*id).towards_tail;
        std::iter::successors(self.chain(chain).head, next)
    }

    /// Chooses a dup as the kernel does: the first with room, or, when the chain is due for pruning, the fullest with
    /// room. Stale dups that it comes by have to go first.
    pub(super) fn best_dup(&mut self, chain: u32, rules: &SearchRules) -> Search {
        let prune = rules.now >= self.chain(chain).pruned.saturating_add(rules.prune_after);
        let mut best: Option<NodeId> = None;
        let (mut steps, mut stale) = (0, None);
        for dup in self.dups_of(chain) {
            steps += 1;
            if self.node(dup).is_stale() {
                stale = Some(dup);
                break;
            }
            let better = best.is_none_or(|best| {
                rules.has_room(self.node(dup), 1)
                    && (!rules.has_room(self.node(best), 1)
                        || self.node(dup).items.len() > self.node(best).items.len())
            });
            if better {
                best = Some(dup);
            }
            if !prune && best.is_some_and(|best| rules.has_room(self.node(best), 1)) {
                break;
            }
        }
        self.steps += steps;
        if let Some(stale) = stale {
            return Search::Stale(stale);
        }
        if prune {
            self.chain_mut(chain).pruned = rules.now;
        }
        let Some(best) = best else {
            return Search::Nothing;
        };
        if self.chain(chain).head != Some(best) && rules.has_room(self.node(best), 2) {
            self.unlink(best);
            self.link_at_head(chain, best);
        }
        Search::Room(best)
    }

    /// Where an item of `from` is to be refiled: the fullest dup of the chain with room, if the chain could do with a dup
    /// less. Walks the list only when the dup that was filled so far is full.
    pub(crate) fn refile_to(&mut self, from: NodeId, rules: &SearchRules) -> Option<NodeId> {
        let chain_id = self.node(from).dup.as_ref()?.chain;
        let chain = self.chain(chain_id);
        let limit = u64::from(rules.max_page_sharing);
        let spare = u64::from(chain.dups.saturating_sub(1)) * limit >= chain.sharers;
        if !spare || !rules.has_room(self.node(from), 1) {
            return None;
        }
        let filling = match chain.filling.filter(|id| self.can_be_filled(*id, rules)) {
            Some(filling) => filling,
            None => self.fullest_with_room(chain_id, rules)?,
        };
        let fuller = self.sharers(from) > self.sharers(filling);
        let filling = if fuller { from } else { filling };
        self.chain_mut(chain_id).filling = Some(filling);
        (filling != from).then_some(filling)
    }

    fn sharers(&self, id: NodeId) -> usize {
        self.node(id).items.len()
    }

    fn can_be_filled(&self, id: NodeId, rules: &SearchRules) -> bool {
        rules.has_room(self.node(id), 1) && !self.node(id).is_stale()
    }

    fn fullest_with_room(&mut self, chain: u32, rules: &SearchRules) -> Option<NodeId> {
        self.steps += u64::from(self.chain(chain).dups);
        self.dups_of(chain)
            .filter(|id| self.can_be_filled(*id, rules))
            .max_by_key(|id| self.sharers(*id))
    }

    /// A chain with one dup left is a plain node again, one without dups is nothing. The kernel's searches do that to
    /// all chains that they pass on their way down the tree; here a search passes none but its own, so the first one
    /// that comes does it to all.
    pub(crate) fn dissolve_short_chains(&mut self) {
        for id in std::mem::take(&mut self.short_chains) {
            self.steps += 1;
            let Some(chain) = self.chains.get(id) else {
                continue;
            };
            if chain.dups <= 1 {
                self.remove_chain(id, chain.head);
            }
        }
    }

    fn remove_chain(&mut self, chain: u32, heir: Option<NodeId>) {
        let (numa, fingerprint) = self.root_key(Root::Chain(chain));
        self.set_root(numa, &fingerprint, heir.map(Root::Node));
        if let Some(heir) = heir {
            self.node_mut(heir).dup = None;
            self.dups -= 1;
        }
        self.chains.remove(chain);
    }

    /// Removes chain heads that have no dups left.
    pub(crate) fn remove_empty_chains(&mut self) {
        let empty = |(id, chain): (u32, &Chain)| (chain.dups == 0).then_some(id);
        let empty: Vec<u32> = self.chains.iter().filter_map(empty).collect();
        for chain in empty {
            self.remove_chain(chain, None);
        }
    }

    /// Puts a chain in the place of a plain node, with that node as its only dup.
    pub(super) fn make_chain(&mut self, first: NodeId, now: Duration) -> u32 {
        let (numa, fingerprint) = self.root_key(Root::Node(first));
        let id = self.chains.insert(Chain {
            fingerprint,
            numa,
            pruned: now,
            head: None,
            dups: 0,
            sharers: 0,
            filling: None,
        });
        self.set_root(numa, &fingerprint, Some(Root::Chain(id)));
        self.push_dup(id, first);
        id
    }

    /// Makes a node that is in no list a dup, at the head.
    pub(super) fn push_dup(&mut self, chain: u32, id: NodeId) {
        let sharers = self.node(id).items.len() as u64;
        self.link_at_head(chain, id);
        let chain = self.chain_mut(chain);
        chain.dups += 1;
        chain.sharers += sharers;
        self.dups += 1;
    }

    /// Takes a dup without items out of its chain.
    pub(super) fn unlink_dup(&mut self, id: NodeId) {
        let chain_id = self.unlink(id);
        let chain = self.chain_mut(chain_id);
        chain.dups -= 1;
        if chain.filling == Some(id) {
            chain.filling = None;
        }
        if chain.dups <= 1 {
            self.short_chains.push(chain_id);
        }
        self.dups -= 1;
    }

    /// Notes that a node has an item more or less.
    pub(super) fn count_sharers(&mut self, id: NodeId, more: i64) {
        let chain = self.node(id).dup.as_ref().map(|dup| dup.chain);
        if let Some(chain) = chain {
            let chain = self.chain_mut(chain);
            chain.sharers = chain.sharers.saturating_add_signed(more);
        }
    }

    fn link_at_head(&mut self, chain: u32, id: NodeId) {
        self.steps += 1;
        let second = self.chain_mut(chain).head.replace(id);
        if let Some(second) = second {
            self.dup_mut(second).towards_head = Some(id);
        }
        self.node_mut(id).dup = Some(Box::new(Dup {
            chain,
            towards_head: None,
            towards_tail: second,
        }));
    }

    /// Takes a dup out of its list; returns the chain.
    fn unlink(&mut self, id: NodeId) -> u32 {
        self.steps += 1;
        let Dup {
            chain,
            towards_head,
            towards_tail,
        } = self.dup(id);
        match towards_head {
            Some(before) => self.dup_mut(before).towards_tail = towards_tail,
            None => self.chain_mut(chain).head = towards_tail,
        }
        if let Some(after) = towards_tail {
            self.dup_mut(after).towards_head = towards_head;
        }
        chain
    }

    pub(super) fn audit_chains(&self) -> Result<(), String> {
        let mut dups = 0;
        for (id, chain) in self.chains.iter() {
            let (mut listed, mut sharers, mut before) = (0, 0, None);
            for dup in self.dups_of(id) {
                let node = self.node(dup);
                let place = self.dup(dup);
                if place.chain != id || place.towards_head != before {
                    return Err(format!("{dup:?} is not linked into chain {id}"));
                }
                if node.fingerprint != chain.fingerprint || node.numa != chain.numa {
                    return Err(format!("{dup:?} has not the content of chain {id}"));
                }
                listed += 1;
                sharers += node.items.len() as u64;
                before = Some(dup);
            }
            if (listed, sharers) != (chain.dups, chain.sharers) {
                return Err(format!(
                    "chain {id} is {chain:?}, counted {listed}, {sharers}"
                ));
            }
            dups += u64::from(listed);
        }
        let counted = self.nodes.iter().filter(|(_, node)| node.dup.is_some());
        if dups == self.dups && counted.count() as u64 == dups {
            Ok(())
        } else {
            Err(format!("{} dups kept, {dups} listed", self.dups))
        }
    }
}
