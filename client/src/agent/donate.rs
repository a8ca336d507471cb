//! The order to donate: copies of pages for the daemon, which computes their digest itself.

use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bits, steps};
use crate::agent::merge::{mark, registered_parts};
use crate::space::PATIENCE;
use crate::sys::read::read_pages_into_shared;
use ksm_engine::order::Outcome;
use ksm_engine::page::PageRun;

impl Agent {
    pub(super) fn donate(&mut self, runs: &[PageRun], out: &mut ReportBuffer) {
        let mut place = 0;
        let mut busy = false;
        for step in runs.iter().copied().flat_map(steps) {
            let mut outcomes = [Outcome::Unsuitable; STEP_PAGES];
            let count = usize::try_from(step.len).unwrap_or(0);
            if busy {
                outcomes = [Outcome::Busy; STEP_PAGES];
            } else {
                busy = !self.donate_step(step, place, &mut outcomes);
            }
            out.outcomes(step, &outcomes);
            place += count;
        }
    }

    /// False if the app is in the way.
    fn donate_step(
        &mut self,
        step: PageRun,
        place: usize,
        outcomes: &mut [Outcome; STEP_PAGES],
    ) -> bool {
        let Some(tables) = self.space.step(PATIENCE) else {
            *outcomes = [Outcome::Busy; STEP_PAGES];
            return false;
        };
        for (first, pages) in registered_parts(&tables, step, bits(0, STEP_PAGES)) {
            let len = usize::try_from(pages.run().len).unwrap_or(0);
            let mut done = 0;
            while done < len {
                let rest = pages.part(done as u64, (len - done) as u64).run();
                let got = read_pages_into_shared(rest, &self.donation, place + first + done);
                mark(outcomes, bits(first + done, got), Outcome::Done);
                done += got;
                if done < len {
                    mark(outcomes, bits(first + done, 1), Outcome::Gone);
                    done += 1;
                }
            }
        }
        true
    }
}
