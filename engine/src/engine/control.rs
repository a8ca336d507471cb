//! Knobs: what writing a file does, and what reading one shows.
//!
//! Writes to `run`, `max_page_sharing` and `merge_across_nodes` wait for the end of the current batch, as the
//! kernel's wait for the scan mutex. They are served in the order in which they came.

use super::items::RmapItem;
use super::scan::Ksmd;
use super::{Counters, Engine, Purpose, ReportError};
use crate::knobs::{AdvisorMode, KnobValue, KsmFile, MAX_WRITE, RunState, WriteError};
use crate::order::Order;
use crate::page::{MmId, PageRun};
use crate::store::SlotStore;

/// Names a write that is not finished yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// How a write went that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The value is in force.
    Done,
    /// [`Engine::take_finished`] will have the ticket.
    Pending(Ticket),
}

/// The values of the knobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// What the scanning is to do.
    pub run: RunState,
    /// Milliseconds between two batches.
    pub sleep_millisecs: u32,
    /// Pages of one batch.
    pub pages_to_scan: u32,
    /// The most items on one stable node.
    pub max_page_sharing: u32,
    /// Whether pages of different NUMA nodes merge.
    pub merge_across_nodes: bool,
    /// Whether zero pages go to the kernel's zero page.
    pub use_zero_pages: bool,
    /// Whether old pages are looked at more seldom.
    pub smart_scan: bool,
    /// Milliseconds between two searches of a chain for stale dups.
    pub prune_millisecs: u32,
    /// Whether the advisor sets `pages_to_scan`.
    pub advisor_mode: AdvisorMode,
    /// Upper limit of the CPU that the advisor plans for, in per cent.
    pub advisor_max_cpu: u32,
    /// `pages_to_scan` when the advisor starts.
    pub advisor_min_pages_to_scan: u64,
    /// The most the advisor sets.
    pub advisor_max_pages_to_scan: u64,
    /// Seconds that a full scan is meant to take.
    pub advisor_target_scan_time: u64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            run: RunState::Stop,
            sleep_millisecs: 20,
            pages_to_scan: DEFAULT_PAGES_TO_SCAN,
            max_page_sharing: 256,
            merge_across_nodes: true,
            use_zero_pages: false,
            smart_scan: true,
            prune_millisecs: 2000,
            advisor_mode: AdvisorMode::None,
            advisor_max_cpu: 70,
            advisor_min_pages_to_scan: 500,
            advisor_max_pages_to_scan: 30_000,
            advisor_target_scan_time: 200,
        }
    }
}

/// What the kernel's KSM does not do, and what we do better unless asked to do as it does: all of it off unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// How many pages may be moved to fuller dups, in per cent of those that the full scan before visited. 0: none.
    pub refile_percent: u8,
    /// Whether equal pages meet that smart scan looks at in different scans. Not where pages do not merge across nodes: a
    /// page that is not looked at may have moved.
    pub meet_phases: bool,
    /// Whether parts of huge pages are treated just as ksmd treats them: of two equal parts that meet one merges a scan later,
    /// and zero ones are counted nowhere. Here that is no improvement, but exactly the kernel's.
    pub huge_pages_as_ksmd: bool,
    /// Nothing is merged: pages that would be are only counted.
    pub dry_run: bool,
}

const DEFAULT_PAGES_TO_SCAN: u32 = 100;
/// Pages of one order to unmerge.
const UNMERGED_AT_ONCE: u64 = 1 << 14;

/// A write that waits for the scan to stand still.
#[derive(Debug)]
pub(crate) struct Request {
    ticket: Ticket,
    value: KnobValue,
}

impl<S: SlotStore> Engine<S> {
    /// Writes a file. Only the first [`MAX_WRITE`] bytes are looked at.
    ///
    /// # Errors
    /// As the kernel's file would answer.
    pub fn write(&mut self, file: KsmFile, written: &[u8]) -> Result<Written, WriteError> {
        let pages_to_scan_is_the_advisors =
            file == KsmFile::PagesToScan && self.knobs.advisor_mode != AdvisorMode::None;
        if pages_to_scan_is_the_advisors {
            return Err(WriteError::Invalid);
        }
        let value = KnobValue::parse(file, &written[..written.len().min(MAX_WRITE)])?;
        let written = self.set(value)?;
        self.pump();
        Ok(written)
    }

    /// Turns on what the kernel's KSM does not do. Before the first page is registered.
    pub fn set_extras(&mut self, extras: Extras) {
        self.extras = extras;
    }

    /// The next write that was pending and is finished.
    pub fn take_finished(&mut self) -> Option<(Ticket, Result<(), WriteError>)> {
        self.finished.pop_front()
    }

    fn set(&mut self, value: KnobValue) -> Result<Written, WriteError> {
        match value {
            KnobValue::Run(_) | KnobValue::MaxPageSharing(_) | KnobValue::MergeAcrossNodes(_) => {
                return self.request(value);
            }
            KnobValue::SleepMillisecs(value) => {
                self.knobs.sleep_millisecs = value;
                self.ksmd.sleep_changed(value, self.now);
            }
            KnobValue::PagesToScan(value) => self.knobs.pages_to_scan = value,
            KnobValue::UseZeroPages(value) => self.knobs.use_zero_pages = value,
            KnobValue::SmartScan(value) => self.knobs.smart_scan = value,
            KnobValue::PruneMillisecs(value) => self.knobs.prune_millisecs = value,
            KnobValue::AdvisorMode(mode) => self.set_advisor_mode(mode),
            KnobValue::AdvisorMaxCpu(value) => self.knobs.advisor_max_cpu = value,
            KnobValue::AdvisorMinPagesToScan(value) => self.knobs.advisor_min_pages_to_scan = value,
            KnobValue::AdvisorMaxPagesToScan(value) => self.knobs.advisor_max_pages_to_scan = value,
            KnobValue::AdvisorTargetScanTime(value) => self.knobs.advisor_target_scan_time = value,
        }
        Ok(Written::Done)
    }

    fn set_advisor_mode(&mut self, mode: AdvisorMode) {
        if mode == self.knobs.advisor_mode {
            return;
        }
        self.knobs.advisor_mode = mode;
        self.knobs.pages_to_scan = match mode {
            AdvisorMode::None => DEFAULT_PAGES_TO_SCAN,
            AdvisorMode::ScanTime => {
                self.advisor = super::advisor::Advisor::default();
                // The kernel keeps the low 32 bits.
                #[expect(clippy::cast_possible_truncation)]
                let pages = self.knobs.advisor_min_pages_to_scan as u32;
                pages
            }
        };
    }

    /// Serves a write at once, or puts it in the queue if the scan is at work.
    fn request(&mut self, value: KnobValue) -> Result<Written, WriteError> {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.requests.push_back(Request { ticket, value });
        self.serve_requests();
        match self.finished.iter().position(|(done, _)| *done == ticket) {
            Some(at) => self
                .finished
                .remove(at)
                .map_or(Ok(()), |(_, result)| result)
                .map(|()| Written::Done),
            None => Ok(Written::Pending(ticket)),
        }
    }

    /// Serves waiting writes for as long as the scan stands still.
    pub(super) fn serve_requests(&mut self) {
        while !self.ksmd.is_working()
            && let Some(request) = self.requests.front()
        {
            match request.value {
                KnobValue::Run(RunState::Unmerge) if self.knobs.run != RunState::Unmerge => {
                    // Stays at the front of the queue until the unmerge is finished.
                    self.begin_unmerge();
                    return;
                }
                value => self.finish_request(|engine| engine.set_standing_still(value)),
            }
        }
    }

    fn finish_request(&mut self, serve: impl FnOnce(&mut Self) -> Result<(), WriteError>) {
        let result = serve(self);
        if let Some(request) = self.requests.pop_front() {
            self.finished.push_back((request.ticket, result));
        }
    }

    fn set_standing_still(&mut self, value: KnobValue) -> Result<(), WriteError> {
        match value {
            KnobValue::Run(run) => self.knobs.run = run,
            KnobValue::MaxPageSharing(limit) if limit != self.knobs.max_page_sharing => {
                self.drop_stale_nodes()?;
                self.knobs.max_page_sharing = limit;
            }
            KnobValue::MergeAcrossNodes(merge) if merge != self.knobs.merge_across_nodes => {
                self.drop_stale_nodes()?;
                self.knobs.merge_across_nodes = merge;
                self.begin_other_trees();
            }
            _ => {}
        }
        Ok(())
    }

    fn drop_stale_nodes(&mut self) -> Result<(), WriteError> {
        if self.tally.shared > 0 {
            return Err(WriteError::Busy);
        }
        for domain in self.domains.values_mut() {
            domain.stable.remove_empty_chains();
        }
        Ok(())
    }

    /// Pages are told apart by node from now on, or are not any more. No page is merged; those in unstable trees come into
    /// the right one at their next visit.
    fn begin_other_trees(&mut self) {
        for mm in self.mms.iter_mut() {
            let unlist = |item: &mut RmapItem| item.set_listed(false);
            mm.items.each_within(PageRun::EVERYTHING, unlist);
        }
        for domain in self.domains.values_mut() {
            domain.unstable.reset();
            for arena in domain.arenas.close_all() {
                self.store.finish(arena);
            }
        }
        // With nothing to scan, no end of a scan would come to do it.
        self.release_arenas();
    }

    fn begin_unmerge(&mut self) {
        self.knobs.run = RunState::Unmerge;
        let asleep = match &self.ksmd {
            Ksmd::Sleeping(sleep) => Some(*sleep),
            Ksmd::Idle | Ksmd::Batch(_) | Ksmd::Unmerging { .. } => None,
        };
        self.ksmd = Ksmd::Unmerging {
            failed: false,
            asleep,
        };
        let mms: Vec<(MmId, Vec<PageRun>)> = self
            .mms
            .iter()
            .filter(|(_, mm)| !mm.exiting)
            .map(|(id, mm)| (id, mm.regions.clone()))
            .collect();
        for (mm, mut regions) in mms {
            regions.reverse();
            self.unmerge_next(mm, regions);
        }
        self.pump();
    }

    /// Orders the first piece of the last of these ranges to be unmerged: of what takes longer an agent could not say in
    /// time that it is at work.
    fn unmerge_next(&mut self, mm: MmId, mut rest: Vec<PageRun>) {
        let Some(mut range) = rest.pop() else {
            return;
        };
        if range.len > UNMERGED_AT_ONCE {
            rest.push(PageRun::between(
                range.start + UNMERGED_AT_ONCE,
                range.end(),
            ));
            range.len = UNMERGED_AT_ONCE;
        }
        let order = Order::Unmerge { range };
        let purpose = Purpose::Unmerge { range, rest };
        self.outbox.send(mm, order, purpose, self.now);
    }

    /// An agent has unmerged a range up to `end`.
    pub(super) fn unmerged(
        &mut self,
        mm: MmId,
        range: PageRun,
        rest: Vec<PageRun>,
        end: u64,
    ) -> Result<(), ReportError> {
        if end < range.start || end > range.end() {
            self.unmerge_lost(mm);
            return Err(ReportError::WrongPages);
        }
        self.forget_items(mm, PageRun::between(range.start, end));
        if end < range.end() {
            self.fail_unmerge();
        }
        self.unmerge_next(mm, rest);
        Ok(())
    }

    /// The agent died, then nothing is left to unmerge; or it does not answer, then the unmerge has failed.
    pub(super) fn unmerge_lost(&mut self, mm: MmId) {
        if self.mms.get(mm).is_some_and(|mm| !mm.exiting) {
            self.fail_unmerge();
        }
    }

    fn fail_unmerge(&mut self) {
        if let Ksmd::Unmerging { failed, .. } = &mut self.ksmd {
            *failed = true;
        }
    }

    /// Ends the unmerge when every agent has answered. Returns whether it ended.
    pub(super) fn continue_unmerge(&mut self) -> bool {
        let Ksmd::Unmerging { failed, asleep } = self.ksmd else {
            return false;
        };
        if self.outbox.is_busy() {
            return false;
        }
        self.ksmd = asleep.map_or(Ksmd::Idle, Ksmd::Sleeping);
        if failed {
            self.knobs.run = RunState::Stop;
        } else {
            self.after_unmerge();
        }
        let result = if failed {
            Err(WriteError::NoMemory)
        } else {
            Ok(())
        };
        self.finish_request(|_| result);
        self.serve_requests();
        true
    }

    fn after_unmerge(&mut self) {
        let all: Vec<(MmId, bool)> = self.mms.iter().map(|(id, mm)| (id, mm.exiting)).collect();
        for (mm, exiting) in all {
            self.forget_all(mm);
            if exiting {
                self.list.remove(mm);
                self.drop_mm(mm);
            } else if let Some(mm) = self.mms.get_mut(mm) {
                mm.zero_pages = 0;
            }
        }
        for domain in self.domains.values_mut() {
            domain.stable.remove_empty_chains();
            domain.unstable = super::UnstableTrees::default();
            for (id, arena) in domain.arenas.take_all() {
                self.store.release(id);
                self.filled.give_back(&arena);
            }
        }
        self.left_behind.clear();
        self.tally.full_scans = 0;
        self.list.finish();
        self.answer_scans();
    }
}

/// The text of a file, with its newline.
pub(super) fn text(file: KsmFile, knobs: &Knobs, counters: &Counters) -> String {
    let number: u64 = match file {
        KsmFile::Run => knobs.run as u64,
        KsmFile::SleepMillisecs => knobs.sleep_millisecs.into(),
        KsmFile::PagesToScan => knobs.pages_to_scan.into(),
        KsmFile::MaxPageSharing => knobs.max_page_sharing.into(),
        KsmFile::MergeAcrossNodes => knobs.merge_across_nodes.into(),
        KsmFile::UseZeroPages => knobs.use_zero_pages.into(),
        KsmFile::SmartScan => knobs.smart_scan.into(),
        KsmFile::PruneMillisecs => knobs.prune_millisecs.into(),
        KsmFile::AdvisorMode => {
            return match knobs.advisor_mode {
                AdvisorMode::None => "[none] scan-time\n",
                AdvisorMode::ScanTime => "none [scan-time]\n",
            }
            .to_owned();
        }
        KsmFile::AdvisorMaxCpu => knobs.advisor_max_cpu.into(),
        KsmFile::AdvisorMinPagesToScan => knobs.advisor_min_pages_to_scan,
        KsmFile::AdvisorMaxPagesToScan => knobs.advisor_max_pages_to_scan,
        KsmFile::AdvisorTargetScanTime => knobs.advisor_target_scan_time,
        KsmFile::PagesShared => counters.pages_shared,
        KsmFile::PagesSharing => counters.pages_sharing,
        KsmFile::PagesUnshared => counters.pages_unshared,
        KsmFile::PagesVolatile => counters.pages_volatile,
        KsmFile::PagesScanned => counters.pages_scanned,
        KsmFile::PagesSkipped => counters.pages_skipped,
        KsmFile::FullScans => counters.full_scans,
        KsmFile::StableNodeChains => counters.stable_node_chains,
        KsmFile::StableNodeDups => counters.stable_node_dups,
        KsmFile::ZeroPages => counters.zero_pages,
        KsmFile::GeneralProfit => return format!("{}\n", counters.general_profit),
    };
    format!("{number}\n")
}
