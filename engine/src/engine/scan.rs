//! Batches and full scans: what the kernel's `ksmd` loop does.

use super::Engine;
use crate::knobs::RunState;
use crate::page::{MmId, PageRun};
use crate::store::SlotStore;
use std::time::Duration;

/// The shortest sleep after a batch that found no page at all.
const IDLE_SLEEP: Duration = Duration::from_millis(4);
/// From the start of a full scan to that of the next passes so much time for each page, whatever `sleep_millisecs` says, in these
/// bounds. ksmd needs that long to look at them. We need a thousandth of it if nothing has changed, and what an app
/// writes all the time would look calm.
const SCAN_OF_PAGE: Duration = Duration::from_micros(1);
const SHORTEST_SCAN: Duration = Duration::from_millis(20);
const LONGEST_PACE: Duration = Duration::from_millis(100);

/// When a full scan began.
#[derive(Debug, Default)]
pub(crate) struct ScanStart {
    at: Duration,
    /// Pages scanned by then, ever.
    scanned: u64,
}

impl ScanStart {
    /// When the next one may begin, after so many pages.
    fn next(&self, scanned: u64) -> Duration {
        let pages = scanned.saturating_sub(self.scanned);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let pace = SCAN_OF_PAGE.saturating_mul(pages);
        self.at + pace.clamp(SHORTEST_SCAN, LONGEST_PACE)
    }
}

/// What the scanning is doing.
#[derive(Debug)]
pub(crate) enum Ksmd {
    /// Waits until there is something to do.
    Idle,
    /// Between two batches.
    Sleeping(Sleep),
    /// In a batch.
    Batch(Batch),
    /// Unmerging everything, which does not end a sleep.
    Unmerging { failed: bool, asleep: Option<Sleep> },
}

/// The sleep between two batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleep {
    until: Duration,
    /// `sleep_millisecs` when it began.
    millisecs: u32,
}

/// One batch.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Pages that may still be asked for.
    pub(super) budget: u64,
    pub(super) visited: u64,
    /// All mms have been passed.
    pub(super) complete: bool,
}

impl Ksmd {
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        match self {
            Self::Sleeping(sleep) => Some(sleep.until),
            Self::Idle | Self::Batch(_) | Self::Unmerging { .. } => None,
        }
    }

    /// `sleep_millisecs` was written: a sleep of another length is over.
    pub(crate) fn sleep_changed(&mut self, millisecs: u32, now: Duration) {
        if let Self::Sleeping(sleep)
        | Self::Unmerging {
            asleep: Some(sleep),
            ..
        } = self
            && sleep.millisecs != millisecs
        {
            sleep.until = now;
        }
    }

    /// Whether a batch is under way.
    pub(crate) fn is_batch(&self) -> bool {
        matches!(self, Self::Batch(_))
    }

    /// Whether a knob that needs the scan to stand still has to wait.
    pub(crate) fn is_working(&self) -> bool {
        matches!(self, Self::Batch(_) | Self::Unmerging { .. })
    }
}

impl Sleep {
    pub(super) fn lasts_at(self, now: Duration) -> bool {
        now < self.until
    }
}

impl<S: SlotStore> Engine<S> {
    /// Does all that can be done without further events.
    pub(super) fn pump(&mut self) {
        loop {
            let progress = match &self.ksmd {
                Ksmd::Idle => !self.held && self.can_scan() && self.start_batch(),
                Ksmd::Sleeping(_) => {
                    !self.held && !self.is_asleep() && {
                        self.ksmd = Ksmd::Idle;
                        self.can_scan()
                    }
                }
                Ksmd::Batch(_) => self.continue_batch(),
                Ksmd::Unmerging { .. } => self.continue_unmerge(),
            };
            if !progress {
                break;
            }
        }
        if self.is_urgent() {
            self.answer_scans();
        }
    }

    /// Whether a batch would begin at `now`, or has not begun because of [`Engine::hold`].
    #[must_use]
    pub fn is_batch_due(&self, now: Duration) -> bool {
        match &self.ksmd {
            Ksmd::Idle => self.can_scan(),
            Ksmd::Sleeping(sleep) => (self.is_urgent() || !sleep.lasts_at(now)) && self.can_scan(),
            Ksmd::Batch(_) | Ksmd::Unmerging { .. } => false,
        }
    }

    /// While `held` no batch begins: somebody who is about to join is waited for.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    fn can_scan(&self) -> bool {
        let wanted = self.knobs.run == RunState::Merge || self.is_urgent();
        wanted && self.knobs.run != RunState::Unmerge && !self.list.is_empty()
    }

    /// Puts an mm into the list of those that are scanned.
    pub(super) fn enlist(&mut self, mm: MmId) {
        if self.knobs.run == RunState::Unmerge {
            self.list.push(mm);
        } else {
            self.list.insert_behind_cursor(mm);
        }
    }

    fn start_batch(&mut self) -> bool {
        if self.list.at_head() {
            self.start_scan();
        }
        let budget = if self.is_urgent() {
            u64::from(u32::MAX)
        } else {
            self.knobs.pages_to_scan.into()
        };
        self.ksmd = Ksmd::Batch(Batch {
            budget,
            visited: 0,
            complete: false,
        });
        true
    }

    fn start_scan(&mut self) {
        self.scan_start = ScanStart {
            at: self.now,
            scanned: self.tally.scanned,
        };
        self.advisor.scan_starts(self.now);
        self.refiling.scan_starts(self.tally.scanned);
        self.count_tracked();
        for mm in self.mms.iter_mut() {
            mm.forgive(self.now);
            mm.unmappable = 0;
        }
        self.forget_huge_pages();
        self.list.start();
    }

    /// Orders visits, takes reports in order, ends the batch. Returns whether the batch ended.
    fn continue_batch(&mut self) -> bool {
        loop {
            let ordered = self.order_visits();
            let taken = self.take_steps();
            if !ordered && !taken {
                break;
            }
        }
        self.flush_plans();
        let Ksmd::Batch(batch) = &self.ksmd else {
            return false;
        };
        let over = batch.complete || batch.budget == 0;
        let at_work = !self.steps.is_empty() || self.outbox.is_busy() || self.has_plans();
        if !over || at_work || !self.donated.is_empty() {
            return false;
        }
        let (complete, visited) = (batch.complete, batch.visited);
        if complete {
            self.finish_scan();
        }
        self.answer_scans();
        let sleep = Duration::from_millis(self.knobs.sleep_millisecs.into());
        let sleep = if self.is_urgent() {
            Duration::ZERO
        } else if visited == 0 {
            sleep.max(IDLE_SLEEP)
        } else {
            sleep
        };
        let mut until = self.now.saturating_add(sleep);
        if complete && !self.is_urgent() {
            until = until.max(self.scan_start.next(self.tally.scanned));
        }
        self.ksmd = if self.can_scan() {
            Ksmd::Sleeping(Sleep {
                until,
                millisecs: self.knobs.sleep_millisecs,
            })
        } else {
            Ksmd::Idle
        };
        self.serve_requests();
        // A sleep of zero still lets the caller send what it has and take what came in.
        !matches!(self.ksmd, Ksmd::Sleeping(_))
    }

    fn finish_scan(&mut self) {
        self.list.finish();
        self.tally.full_scans += 1;
        self.spare.clear();
        self.advise();
        for domain in self.domains.values_mut() {
            domain.unstable.give_back_memory();
            domain.arenas.scan_passed(self.now);
        }
        self.release_arenas();
        self.retire_sparse_arenas();
        self.sum_up_dry_run();
    }

    pub(super) fn batch_mut(&mut self) -> &mut Batch {
        match &mut self.ksmd {
            Ksmd::Batch(batch) => batch,
            Ksmd::Idle | Ksmd::Sleeping(_) | Ksmd::Unmerging { .. } => {
                unreachable!("steps are taken in a batch only")
            }
        }
    }

    /// Frees what lies outside the mergeable ranges; takes an mm without any out of the list.
    pub(super) fn end_of_mm(&mut self, id: MmId) {
        let Some(mm) = self.mms.get_mut(id) else {
            return;
        };
        let empty = mm.regions.is_empty();
        if mm.exiting || empty {
            let exiting = mm.exiting;
            self.forget_all(id);
            self.list.remove(id);
            if exiting {
                self.drop_mm(id);
            }
        } else if mm.shrunk {
            mm.shrunk = false;
            let outside: Vec<u64> = mm
                .items
                .within(PageRun::EVERYTHING)
                .map(|(page, _)| page)
                .filter(|page| !mm.is_mergeable(*page))
                .collect();
            for page in outside {
                self.forget_item(id, page);
            }
        }
    }
}
