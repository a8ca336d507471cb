//! What the design note says of the stable tree, in steps instead of time.

use super::*;
use crate::page::MmId;

const HERE: NumaNode = NumaNode(0);
const EQUAL: Fingerprint = Fingerprint(7);

fn rules(now: u64, prune_after: u64, max_page_sharing: u32) -> SearchRules {
    SearchRules {
        now: Duration::from_millis(now),
        max_page_sharing,
        prune_after: Duration::from_millis(prune_after),
    }
}

/// As long as no test lasts.
const NEVER: u64 = 1 << 40;

#[derive(Default)]
struct Trees {
    trees: StableTrees,
    items: u64,
}

impl Trees {
    /// A chain of dups with so many items each; the last one is the head.
    fn with_dups(sharers: impl IntoIterator<Item = u32>) -> (Self, Vec<NodeId>) {
        let mut all = Self::default();
        let dups = sharers.into_iter().map(|sharers| all.add(sharers));
        let dups = dups.collect();
        (all, dups)
    }

    fn add(&mut self, sharers: u32) -> NodeId {
        let id = self.trees.insert(HERE, EQUAL, None, Duration::ZERO);
        for _ in 0..sharers {
            self.items += 1;
            let item = ItemRef::new(MmId(1), self.items);
            self.trees.attach(id, item, true);
        }
        self.trees.audit().unwrap();
        id
    }

    /// Takes all items off a node and removes it.
    fn empty(&mut self, id: NodeId) {
        while !self.trees.node(id).items().is_empty() {
            self.trees.detach(id, 0, true);
        }
        self.trees.remove(id);
    }

    /// What `act` costs.
    fn steps(&mut self, act: impl FnOnce(&mut StableTrees)) -> u64 {
        let before = self.trees.steps();
        act(&mut self.trees);
        self.trees.audit().unwrap();
        self.trees.steps() - before
    }

    fn search(&mut self, rules: &SearchRules) -> (Search, u64) {
        let before = self.trees.steps();
        let found = self.trees.search(HERE, &EQUAL, rules);
        self.trees.audit().unwrap();
        (found, self.trees.steps() - before)
    }
}

#[test]
fn a_search_costs_the_same_however_many_dups_there_are() {
    let costs = [2, 10, 1000].map(|count| {
        let (mut all, dups) = Trees::with_dups((0..count).map(|_| 1));
        let (found, steps) = all.search(&rules(0, NEVER, 4));
        assert_eq!(found, Search::Room(dups[count - 1]));
        let other = all.steps(|trees| {
            trees.search(HERE, &Fingerprint(8), &rules(0, NEVER, 4));
        });
        (steps, other)
    });
    assert_eq!(costs, [(2, 1); 3]);
}

#[test]
fn dups_come_go_and_move_to_the_head_in_as_many_steps_however_many_there_are() {
    let costs = [4, 1000].map(|count| {
        let (mut all, dups) = Trees::with_dups((0..count).map(|i| 1 + u32::from(i == 0)));
        let comes = all.steps(|trees| {
            let _ = trees.insert(HERE, EQUAL, None, Duration::ZERO);
        });
        let middle = dups[count / 2];
        all.trees.detach(middle, 0, true);
        let goes = all.steps(|trees| {
            let _ = trees.remove(middle);
        });
        // The fullest one is at the tail: finding it walks the list, moving it does not.
        let before = all.trees.dup_count();
        let (found, walked) = all.search(&rules(1, 0, 8));
        assert_eq!(found, Search::Room(dups[0]));
        (comes, goes, walked - before)
    });
    assert_eq!(costs[0], costs[1]);
}

#[test]
fn the_best_dup_is_at_the_head_and_the_next_search_finds_it_there() {
    let (mut all, dups) = Trees::with_dups([3, 5, 2, 1]);
    assert_eq!(all.search(&rules(1, NEVER, 8)).0, Search::Room(dups[3]));
    assert_eq!(all.search(&rules(1, 0, 8)).0, Search::Room(dups[1]));
    assert_eq!(all.search(&rules(1, NEVER, 8)), (Search::Room(dups[1]), 2));
    // Not one with room for a single item, which would not stay the best for long.
    assert_eq!(all.search(&rules(1, 0, 6)).0, Search::Room(dups[1]));
    all.trees.attach(dups[0], ItemRef::new(MmId(1), 99), true);
    all.trees.attach(dups[0], ItemRef::new(MmId(1), 98), true);
    all.trees.attach(dups[0], ItemRef::new(MmId(1), 97), true);
    assert_eq!(all.search(&rules(1, 0, 7)).0, Search::Room(dups[0]));
    assert_eq!(all.search(&rules(1, NEVER, 7)).0, Search::Room(dups[1]));
}

#[test]
fn a_walk_takes_a_step_for_each_dup() {
    for count in [3_u32, 30, 300] {
        let (mut all, _) = Trees::with_dups((0..count).map(|_| 4));
        // All are full: there is nothing to stop at.
        let (found, steps) = all.search(&rules(0, NEVER, 4));
        assert_eq!((found, steps), (Search::Full, 1 + u64::from(count)));
    }
}

#[test]
fn stale_dups_are_pruned_when_the_time_has_come_and_not_before() {
    let (mut all, dups) = Trees::with_dups([1, 1, 1]);
    all.trees.bereave(dups[0]);
    let due = 2000;
    // The head has room: the walk ends there.
    let (found, _) = all.search(&rules(due - 1, due, 4));
    assert_eq!(found, Search::Room(dups[2]));
    let (found, _) = all.search(&rules(due, due, 4));
    assert_eq!(found, Search::Stale(dups[0]));
    all.trees.detach(dups[0], 0, false);
    all.trees.remove(dups[0]);
    let (found, _) = all.search(&rules(due, due, 4));
    assert!(matches!(found, Search::Room(_)));
    // Not again before as much time has passed.
    all.trees.bereave(dups[1]);
    let (found, _) = all.search(&rules(2 * due - 1, due, 4));
    assert_eq!(found, Search::Room(dups[2]));
    let (found, _) = all.search(&rules(2 * due, due, 4));
    assert_eq!(found, Search::Stale(dups[1]));
}

#[test]
fn a_stale_node_without_a_chain_is_found_at_once() {
    let (mut all, dups) = Trees::with_dups([2]);
    all.trees.bereave(dups[0]);
    assert_eq!(all.search(&rules(0, NEVER, 4)).0, Search::Room(dups[0]));
    all.trees.bereave(dups[0]);
    assert_eq!(all.search(&rules(0, NEVER, 4)).0, Search::Stale(dups[0]));
}

#[test]
fn a_chain_with_one_dup_left_is_a_plain_node_again() {
    let (mut all, dups) = Trees::with_dups([2, 2, 2]);
    assert_eq!((all.trees.chain_count(), all.trees.dup_count()), (1, 3));
    all.empty(dups[1]);
    all.empty(dups[2]);
    assert_eq!((all.trees.chain_count(), all.trees.dup_count()), (1, 1));
    assert_eq!(all.search(&rules(0, NEVER, 4)).0, Search::Room(dups[0]));
    assert_eq!((all.trees.chain_count(), all.trees.dup_count()), (0, 0));
    all.empty(dups[0]);
    assert_eq!(all.search(&rules(0, NEVER, 4)).0, Search::Nothing);
}

#[test]
fn nodes_have_trees_of_their_own() {
    let mut trees = StableTrees::default();
    let ids = [NumaNode(0), NumaNode(1)].map(|numa| {
        let id = trees.insert(numa, EQUAL, None, Duration::ZERO);
        trees.attach(id, ItemRef::new(MmId(1), 1 + u64::from(numa.0)), true);
        id
    });
    trees.audit().unwrap();
    assert_eq!(trees.chain_count(), 0);
    for (numa, id) in [NumaNode(0), NumaNode(1)].into_iter().zip(ids) {
        let found = trees.search(numa, &EQUAL, &rules(0, NEVER, 4));
        assert_eq!(found, Search::Room(id));
    }
    let found = trees.search(NumaNode(2), &EQUAL, &rules(0, NEVER, 4));
    assert_eq!(found, Search::Nothing);
}

/// Moves items one by one as refiling says, and counts what choosing their new dups costs.
#[test]
fn refiling_packs_a_chain_and_walks_it_once_for_each_dup_that_it_fills() {
    let (limit, count) = (4, 40);
    let (mut all, dups) = Trees::with_dups((0..count).map(|_| 1));
    let rules = rules(0, NEVER, limit);
    let before = all.trees.steps();
    let mut moves = 0;
    for from in dups {
        while let Some(to) = all.trees.refile_to(from, &rules) {
            let item = all.trees.node(from).items()[0];
            all.trees.detach(from, 0, true);
            all.trees.attach(to, item, true);
            moves += 1;
            if all.trees.node(from).items().is_empty() {
                all.trees.remove(from);
                break;
            }
        }
    }
    all.trees.audit().unwrap();
    let full = u64::from(count / limit);
    assert_eq!(
        (all.trees.dup_count(), moves),
        (full, count - count / limit)
    );
    let links = u64::from(count) - full;
    let steps = all.trees.steps() - before - links;
    assert!(
        steps <= (full + 1) * u64::from(count),
        "{steps} steps to fill {full} dups"
    );
}

#[test]
fn a_chain_that_needs_all_its_dups_is_left_alone() {
    for (sharers, moves) in [
        ([2, 3], false),
        ([1, 4], false),
        ([2, 2], true),
        ([1, 2], true),
    ] {
        let (mut all, dups) = Trees::with_dups(sharers);
        let rules = rules(0, NEVER, 4);
        let moved = dups
            .iter()
            .any(|from| all.trees.refile_to(*from, &rules).is_some());
        assert_eq!(moved, moves, "{sharers:?}");
    }
}
