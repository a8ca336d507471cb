//! The order to split huge pages: the kernel does that to move a part of one, if only away and back.

use super::held::{Gear, Held};
use super::merge::{leave_out_pipes, mark, registered_parts};
use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bits, steps};
use crate::space::PATIENCE;
use crate::space::states::IN_FILE;
use ksm_engine::order::Outcome;
use ksm_engine::page::PageRun;

impl Agent {
    pub(super) fn split(&mut self, runs: &[PageRun], out: &mut ReportBuffer) {
        self.headroom.refresh();
        for step in runs.iter().copied().flat_map(steps) {
            let mut outcomes = [Outcome::Unsuitable; STEP_PAGES];
            self.split_step(step, &mut outcomes);
            out.outcomes(step, &outcomes);
        }
        self.quarantine.empty();
    }

    fn split_step(&mut self, step: PageRun, outcomes: &mut [Outcome; STEP_PAGES]) {
        let todo = bits(0, usize::try_from(step.len).unwrap_or(0));
        let Some(tables) = self.space.step(PATIENCE) else {
            return outcomes.fill(Outcome::Busy);
        };
        let todo = leave_out_pipes(&tables, step, todo, outcomes);
        for (first, pages) in registered_parts(&tables, step, todo) {
            let len = usize::try_from(pages.run().len).unwrap_or(0);
            let flags = tables.states.get(pages.run().start).flags;
            let Some(part) = outcomes.get_mut(first..first + len) else {
                continue;
            };
            if flags.intersects(IN_FILE) {
                continue;
            }
            // Registering the run for the moment of the hold splits a mapping, too.
            if !self.headroom.allows_run(STEP_PAGES) {
                part.fill(Outcome::NoMaps);
                continue;
            }
            let gear = Gear {
                uffd: &self.userfaults.moving,
                journal: &self.space.journal,
                counters: &self.space.counters,
            };
            match Held::take(gear, &mut self.quarantine, pages, None, part) {
                Ok(held) => {
                    let moved = held.inside();
                    drop(held);
                    mark(part, moved, Outcome::Done);
                }
                Err(outcome) => part.fill(outcome),
            }
        }
    }
}
