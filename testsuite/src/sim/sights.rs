//! What a simulation has seen, so that it can be told whether it was worth running.

use super::World;
use super::agent::Answer;
use ksm_engine::order::{Order, Outcome};
use std::collections::BTreeMap;

/// Counts of what happened.
#[derive(Clone, Debug, Default)]
pub struct Sights {
    /// Pages that each kind of order was carried out on, by outcome. Pages that were visited or unmerged count as done.
    pub pages: BTreeMap<(&'static str, Outcome), u64>,
    /// Agents that the daemon hung up on.
    pub cut_off: u64,
    /// Arenas let go of.
    pub released: u64,
    /// Arenas taken over from daemons that had died.
    pub adopted: u64,
}

impl Sights {
    pub(super) fn obeyed(&mut self, order: &Order, answer: &Answer) {
        let kind = match order {
            Order::Visit { .. } => "visit",
            Order::Donate { .. } => "donate",
            Order::Map { .. } => "map",
            Order::Zero { .. } => "zero",
            Order::Split { .. } => "split",
            Order::Unmerge { .. } => "unmerge",
            Order::Remap { .. } => "remap",
            Order::Count => "count",
        };
        let mut count = |outcome, pages| {
            *self.pages.entry((kind, outcome)).or_default() += u64::from(pages);
        };
        match answer {
            Answer::Visited { runs, .. } => {
                runs.iter().for_each(|run| count(Outcome::Done, run.len));
            }
            Answer::Unmerged(_) | Answer::Counted(_) => count(Outcome::Done, 1),
            Answer::Done(outcomes) => {
                for run in outcomes {
                    if let Some(outcome) = Outcome::from_number(run.outcome) {
                        count(outcome, run.len);
                    }
                }
            }
        }
    }

    /// Adds what was seen in `world`.
    pub fn add(&mut self, world: &World) {
        for (what, count) in &world.sights.pages {
            *self.pages.entry(*what).or_default() += count;
        }
        self.cut_off += world.sights.cut_off;
        self.released += world.arenas.borrow().releases;
        self.adopted += world.arenas.borrow().adoptions;
    }
}
