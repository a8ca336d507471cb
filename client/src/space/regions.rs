//! A sorted table of disjoint page runs, of fixed capacity, in memory of our own.

use ksm_engine::page::PageRun;
use zerocopy::FromZeros;

/// The table has no room for one more run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for one more run of pages")]
pub struct Full;

/// Sorted, disjoint, not touching runs. All-zero bytes are an empty table.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct RunTable<const N: usize> {
    count: usize,
    runs: [PageRun; N],
}

impl<const N: usize> RunTable<N> {
    /// The runs in ascending order.
    pub fn runs(&self) -> &[PageRun] {
        self.runs.get(..self.count).unwrap_or(&self.runs)
    }

    /// How many more runs it holds for certain.
    pub fn room(&self) -> usize {
        N - self.runs().len()
    }

    /// The first part of `within` that is in the table.
    pub fn first(&self, within: PageRun) -> Option<PageRun> {
        let runs = self.runs();
        let index = runs.partition_point(|run| run.end() <= within.start);
        runs.get(index).and_then(|run| run.intersection(within))
    }

    /// The first part of `within` that is not in the table.
    pub fn first_gap(&self, within: PageRun) -> Option<PageRun> {
        let end = match self.first(within) {
            None => within.end(),
            Some(run) if run.start > within.start => run.start,
            Some(run) => {
                // Runs in the table never touch, so the gap begins right after this one.
                let after = PageRun::between(run.end(), within.end());
                let end = self.first(after).map_or(after.end(), |next| next.start);
                return Some(PageRun::between(after.start, end)).filter(|gap| gap.len > 0);
            }
        };
        Some(PageRun::between(within.start, end)).filter(|gap| gap.len > 0)
    }

    /// Adds pages; those that are in already stay.
    ///
    /// # Errors
    /// When it is full; then nothing has changed.
    pub fn insert(&mut self, run: PageRun) -> Result<(), Full> {
        let from = self.runs().partition_point(|old| old.end() < run.start);
        let to = self.runs().partition_point(|old| old.start <= run.end());
        let touching = self.runs().get(from..to).unwrap_or(&[]);
        let start = touching
            .first()
            .map_or(run.start, |old| old.start.min(run.start));
        let end = touching
            .last()
            .map_or(run.end(), |old| old.end().max(run.end()));
        self.splice(from, to, &[PageRun::between(start, end)])
    }

    /// Takes pages out; those that are not in do not matter.
    ///
    /// # Errors
    /// When a run would have to be split and there is no room; then nothing has changed.
    pub fn remove(&mut self, run: PageRun) -> Result<(), Full> {
        let from = self.runs().partition_point(|old| old.end() <= run.start);
        let to = self
            .runs()
            .partition_point(|old| old.start < run.end())
            .max(from);
        let cut = self.runs().get(from..to).unwrap_or(&[]);
        let (Some(first), Some(last)) = (cut.first(), cut.last()) else {
            return Ok(());
        };
        let left = PageRun::between(first.start, run.start);
        let right = PageRun::between(run.end(), last.end());
        match (left.len > 0, right.len > 0) {
            (true, true) => self.splice(from, to, &[left, right]),
            (true, false) => self.splice(from, to, &[left]),
            (false, true) => self.splice(from, to, &[right]),
            (false, false) => self.splice(from, to, &[]),
        }
    }

    /// Replaces the runs `from..to` by `by`.
    fn splice(&mut self, from: usize, to: usize, by: &[PageRun]) -> Result<(), Full> {
        let count = self.count - (to - from) + by.len();
        if count > N {
            return Err(Full);
        }
        self.runs.copy_within(to..self.count, from + by.len());
        for (place, run) in self.runs.iter_mut().skip(from).zip(by) {
            *place = *run;
        }
        self.count = count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pages<const N: usize>(table: &RunTable<N>) -> BTreeSet<u64> {
        table
            .runs()
            .iter()
            .flat_map(|run| run.start..run.end())
            .collect()
    }

    fn run() -> impl Strategy<Value = PageRun> {
        (0_u64..200, 1_u64..40).prop_map(|(start, len)| PageRun { start, len })
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_pages(steps in prop::collection::vec((any::<bool>(), run()), 1..60)) {
            let mut table = RunTable::<12>::new_zeroed();
            let mut model = BTreeSet::new();
            for (insert, run) in steps {
                let done = if insert { table.insert(run) } else { table.remove(run) };
                if done.is_ok() {
                    for page in run.start..run.end() {
                        if insert { model.insert(page); } else { model.remove(&page); }
                    }
                }
                prop_assert_eq!(pages(&table), model.clone());
                prop_assert!(table.runs().windows(2).all(|pair| pair[0].end() < pair[1].start));
                let inside = (run.start..run.end()).find(|page| model.contains(page));
                prop_assert_eq!(table.first(run).map(|found| found.start), inside);
                let gap = (run.start..run.end()).find(|page| !model.contains(page));
                let found = table.first_gap(run);
                prop_assert_eq!(found.map(|found| found.start), gap);
                if let Some(found) = found {
                    prop_assert!((found.start..found.end()).all(|page| !model.contains(&page)));
                    prop_assert!(found.end() == run.end() || model.contains(&found.end()));
                }
            }
        }
    }

    #[test]
    fn a_full_table_refuses_and_stays_as_it_was() {
        let mut table = RunTable::<2>::new_zeroed();
        table.insert(PageRun { start: 0, len: 10 }).expect("room");
        table.insert(PageRun { start: 20, len: 10 }).expect("room");
        assert_eq!(table.insert(PageRun { start: 40, len: 1 }), Err(Full));
        assert_eq!(table.remove(PageRun { start: 5, len: 1 }), Err(Full));
        assert_eq!(pages(&table).len(), 20);
        table
            .insert(PageRun { start: 10, len: 10 })
            .expect("joins two");
        assert_eq!(table.runs(), [PageRun { start: 0, len: 30 }]);
    }
}
