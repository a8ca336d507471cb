//! The order to place the zero page under pages that are all zero: no slot, no mapping, no memory.

use super::held::{Gear, Held};
use super::merge::{leave_out_pipes, mark, registered_parts, with_outcome};
use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bit_runs, bits, is_zero, steps};
use crate::space::states::{Flags, IN_FILE, PageState};
use crate::space::{PATIENCE, Tables};
use crate::sys::remap::{AppPages, populate_write};
use ksm_engine::order::Outcome;
use ksm_engine::page::PageRun;

impl Agent {
    pub(super) fn zero(&mut self, runs: &[PageRun], out: &mut ReportBuffer) {
        self.headroom.refresh();
        self.space.forget_emptied_pipes(self.app);
        let mut busy = false;
        for step in runs.iter().copied().flat_map(steps) {
            let mut outcomes = [Outcome::Unsuitable; STEP_PAGES];
            if busy {
                outcomes = [Outcome::Busy; STEP_PAGES];
            } else {
                busy = !self.zero_step(step, &mut outcomes);
            }
            out.outcomes(step, &outcomes);
        }
        self.quarantine.empty();
    }

    /// False if the app is in the way.
    fn zero_step(&mut self, step: PageRun, outcomes: &mut [Outcome; STEP_PAGES]) -> bool {
        let mut todo = bits(0, usize::try_from(step.len).unwrap_or(0));
        for last in [false, true] {
            self.turn.begin();
            let Some(mut tables) = self.space.step(PATIENCE) else {
                mark(outcomes, todo, Outcome::Busy);
                return false;
            };
            todo = leave_out_pipes(&tables, step, todo, outcomes);
            for (first, pages) in registered_parts(&tables, step, todo) {
                if last && populate_write(pages).is_err() {
                    continue;
                }
                let len = usize::try_from(pages.run().len).unwrap_or(0);
                let Some(part) = outcomes.get_mut(first..first + len) else {
                    continue;
                };
                if tables
                    .states
                    .get(pages.run().start)
                    .flags
                    .intersects(IN_FILE)
                {
                    // The kernel places its zero page in anonymous mappings only.
                    part.fill(Outcome::Unsure);
                } else {
                    self.zero_part(&mut tables, pages, part);
                }
            }
            drop(tables);
            todo &= with_outcome(outcomes, Outcome::Pinned);
            if todo == 0 {
                break;
            }
        }
        true
    }

    fn zero_part(&mut self, tables: &mut Tables, pages: AppPages, outcomes: &mut [Outcome]) {
        // Registering the run for the moment of the hold splits a mapping, too, but no longer.
        if !self.headroom.allows_run(STEP_PAGES) {
            outcomes.fill(Outcome::NoMaps);
            return;
        }
        let gear = Gear {
            uffd: &self.userfaults.moving,
            journal: &self.space.journal,
            counters: &self.space.counters,
        };
        let mut held = match Held::take(gear, &mut self.quarantine, pages, None, outcomes) {
            Ok(held) => held,
            Err(outcome) => return outcomes.fill(outcome),
        };
        let zero = (0..outcomes.len())
            .filter(|i| held.page(*i).is_some_and(is_zero))
            .fold(0, |mask, i| mask | bits(i, 1));
        mark(outcomes, held.inside() & !zero, Outcome::Changed);
        for (first, count) in bit_runs(zero) {
            let done = held.map_zero(first, count);
            mark(outcomes, bits(first, done), Outcome::Done);
            mark(outcomes, bits(first + done, count - done), Outcome::Failed);
            let run = pages.part(first as u64, done as u64).run();
            for page in run.start..run.end() {
                tables.states.set(
                    page,
                    PageState {
                        flags: Flags::ZEROED,
                        ..PageState::UNKNOWN
                    },
                );
            }
        }
    }
}
