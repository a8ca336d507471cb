//! How many separate regions a peer has registered.
//!
//! The engine keeps the regions; this only bounds them, so that a peer cannot make it keep millions.

use ksm_engine::page::PageRun;
use std::collections::BTreeMap;

/// Disjoint page runs, neighbours joined: start to end.
#[derive(Debug, Default)]
pub struct Regions {
    runs: BTreeMap<u64, u64>,
}

impl Regions {
    /// Adds a run.
    pub fn add(&mut self, run: PageRun) {
        let (mut start, mut end) = (run.start, run.end());
        // Runs that touch count as overlapping.
        while let Some((&first, &last)) = self.runs.range(..=end).next_back() {
            if last < start {
                break;
            }
            self.runs.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.runs.insert(start, end);
    }

    /// Takes a run out.
    pub fn remove(&mut self, run: PageRun) {
        while let Some((&first, &last)) = self.runs.range(..run.end()).next_back() {
            if last <= run.start {
                break;
            }
            self.runs.remove(&first);
            if last > run.end() {
                self.runs.insert(run.end(), last);
            }
            if first < run.start {
                self.runs.insert(first, run.start);
            }
        }
    }

    /// How many regions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Regions;
    use ksm_engine::page::PageRun;
    use std::collections::BTreeSet;

    fn run(start: u64, len: u64) -> PageRun {
        PageRun { start, len }
    }

    #[test]
    fn neighbours_join_and_holes_split() {
        let mut regions = Regions::default();
        regions.add(run(10, 5));
        regions.add(run(20, 5));
        assert_eq!(regions.count(), 2);
        regions.add(run(15, 5));
        assert_eq!(regions.count(), 1);
        regions.remove(run(12, 1));
        assert_eq!(regions.count(), 2);
        regions.remove(run(0, 100));
        assert_eq!(regions.count(), 0);
    }

    #[test]
    fn any_order_of_adding_and_removing_agrees_with_a_set_of_pages() {
        // A small generator with a fixed seed: the same 20000 operations every time.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut regions = Regions::default();
        let mut pages = BTreeSet::new();
        for _ in 0..20_000 {
            let run = run(next(60), 1 + next(12));
            if next(2) == 0 {
                regions.add(run);
                pages.extend(run.start..run.end());
            } else {
                regions.remove(run);
                pages.retain(|page| !run.contains(*page));
            }
            let starts = pages
                .iter()
                .filter(|p| **p == 0 || !pages.contains(&(**p - 1)));
            assert_eq!(regions.count(), starts.count());
        }
    }
}
