//! Visits: ordered ahead of the page that is being decided on, so that agents work while the engine does, and several
//! agents at the same time.
//!
//! Their reports are still taken in cursor order: the queue of [`Step`]s is that order. It reaches beyond the end of an mm,
//! as far as the batch does, and each agent gets a few orders of it at a time.

use super::Engine;
use super::ReportError;
use super::items::RmapItem;
use super::mm::Mm;
use super::outbox::Purpose;
use super::scan::Ksmd;
use crate::order::{MAX_RUNS, MOST_VISITED, Order, OrderId, VISIT_PAGES, VisitRun, VisitState};
use crate::page::{Digest, MmId, PageRun};
use crate::store::SlotStore;
use smallvec::SmallVec;

/// Visits that one agent may have to do at one time.
const WINDOW: usize = 6;
/// Visits that are ordered, or arrived before it is their turn: what they found takes memory.
const MOST_STEPS: usize = 128;
/// The most pages, present or not, that one visit looks at.
const MAX_STRIDE: u64 = 1 << 20;
/// Merged pages in the making beyond which no further page is decided on: donations are slower than visits, and what
/// waits for them takes memory.
const MOST_FOUNDINGS: usize = 1024;

/// What is left to be done in order.
#[derive(Debug)]
pub(crate) enum Step {
    /// A visit, and its report once it is there.
    Visit {
        /// Once it is ordered.
        id: Option<OrderId>,
        mm: MmId,
        range: PageRun,
        limit: u32,
        /// Nothing may be summed up.
        at_length: bool,
        reserved: u64,
        /// The next range begins where this visit ends.
        bounded: bool,
        outcome: VisitOutcome,
    },
    /// The end of an mm.
    End(MmId),
}

/// How far a visit is.
#[derive(Debug)]
pub(crate) enum VisitOutcome {
    /// Its agent has enough to do as it is.
    Planned,
    Waiting,
    Arrived(Visited),
    Failed,
}

/// The report on a visit.
#[derive(Debug)]
pub(crate) struct Visited {
    pub(crate) end: u64,
    pub(crate) zero_pages: u64,
    pub(crate) runs: Vec<VisitRun>,
    pub(crate) digests: Vec<Digest>,
}

impl<S: SlotStore> Engine<S> {
    fn foundings(&self) -> usize {
        self.domains
            .values()
            .map(|domain| domain.foundings.len())
            .sum()
    }

    /// Orders visits as far as the budget and the windows allow. Returns whether any step was added.
    pub(super) fn order_visits(&mut self) -> bool {
        let any = self.plan_visits();
        self.send_visits();
        any
    }

    /// Gives orders to agents that have few.
    fn send_visits(&mut self) {
        let mut busy: SmallVec<[(MmId, usize); 8]> = SmallVec::new();
        for at in 0..self.steps.len() {
            let Some(Step::Visit {
                mm,
                range,
                limit,
                at_length,
                outcome,
                ..
            }) = self.steps.get(at)
            else {
                continue;
            };
            let (mm, range, limit) = (*mm, *range, *limit);
            let brief = !*at_length && self.may_be_brief();
            let planned = match outcome {
                VisitOutcome::Planned => true,
                VisitOutcome::Waiting => false,
                VisitOutcome::Arrived(_) | VisitOutcome::Failed => continue,
            };
            let place = busy.iter().position(|(other, _)| *other == mm);
            let place = place.unwrap_or_else(|| {
                busy.push((mm, 0));
                busy.len() - 1
            });
            if busy[place].1 == WINDOW {
                continue;
            }
            busy[place].1 += 1;
            if planned {
                let sent = self.send_visit(mm, range, limit, brief);
                if let Some(Step::Visit {
                    id,
                    outcome,
                    at_length,
                    ..
                }) = self.steps.get_mut(at)
                {
                    *id = sent;
                    *at_length = !brief;
                    *outcome = match sent {
                        Some(_) => VisitOutcome::Waiting,
                        None => VisitOutcome::Failed,
                    };
                }
            }
        }
    }

    fn plan_visits(&mut self) -> bool {
        let mut any = false;
        loop {
            let Ksmd::Batch(batch) = &self.ksmd else {
                return any;
            };
            let bounded_out = matches!(self.steps.back(), Some(Step::Visit { bounded: true, .. }));
            let full = self.steps.len() >= MOST_STEPS;
            if batch.complete || batch.budget == 0 || bounded_out || full {
                return any;
            }
            let budget = batch.budget;
            any = true;
            let Some(id) = self.list.current() else {
                if self.steps.is_empty() {
                    self.batch_mut().complete = true;
                }
                return false;
            };
            let page = self.list.page;
            let next = self
                .mms
                .get(id)
                .filter(|mm| self.is_asked(mm))
                .and_then(|mm| mm.stretch_from(page, mm.stride));
            match next {
                Some(range) => self.plan_visit(id, range, budget),
                None => {
                    self.steps.push_back(Step::End(id));
                    self.list.next_mm();
                }
            }
        }
    }

    fn to_skip(&self, mm: MmId, range: PageRun) -> Vec<PageRun> {
        match self.mms.get(mm) {
            Some(mm) if self.knobs.smart_scan => skip_list(mm, range),
            _ => Vec::new(),
        }
    }

    fn plan_visit(&mut self, id: MmId, mut range: PageRun, budget: u64) {
        if range.len > MAX_RUNS as u64 {
            let skip = self.to_skip(id, range);
            if let Some(last) = skip.get(MAX_RUNS - 1) {
                // What the list has no room for would be looked at.
                range = PageRun::between(range.start, last.end());
            }
        }
        let (most, sums_up, mergeable) = self.mms.get(id).map_or((VISIT_PAGES, false, 0), |mm| {
            (mm.reach, mm.sums_up, mm.mergeable_within(range))
        });
        let limit = most.min(u32::try_from(budget).unwrap_or(u32::MAX));
        let reserved = u64::from(limit).min(mergeable);
        let bounded = mergeable > u64::from(limit);
        if !bounded {
            self.list.page = range.end();
        }
        self.batch_mut().budget -= reserved;
        self.steps.push_back(Step::Visit {
            id: None,
            mm: id,
            range,
            limit,
            at_length: !sums_up,
            reserved,
            bounded,
            outcome: VisitOutcome::Planned,
        });
    }

    /// Whether agents may sum up what has not changed: its node, or whether it is a part of a huge page, may have.
    fn may_be_brief(&self) -> bool {
        self.knobs.merge_across_nodes && !self.extras.huge_pages_as_ksmd
    }

    /// `None` if the agent takes no orders.
    fn send_visit(&mut self, mm: MmId, range: PageRun, limit: u32, brief: bool) -> Option<OrderId> {
        self.mms.get(mm).filter(|mm| self.is_asked(mm))?;
        let skip = self.to_skip(mm, range);
        let order = Order::Visit {
            range,
            limit,
            skip,
            nodes: !self.knobs.merge_across_nodes,
            brief,
        };
        let pages = range.len.min(limit.into());
        Some(self.outbox.send(mm, order, Purpose::Visit(pages), self.now))
    }

    fn step_of(&mut self, order: OrderId) -> Option<(&mut VisitOutcome, PageRun, bool)> {
        self.steps.iter_mut().find_map(|step| match step {
            Step::Visit {
                id,
                outcome,
                range,
                at_length,
                ..
            } if *id == Some(order) => Some((outcome, *range, *at_length)),
            Step::Visit { .. } | Step::End(_) => None,
        })
    }

    /// Checks the report on a visit and keeps it until it is its turn.
    pub(super) fn visit_arrived(
        &mut self,
        id: OrderId,
        report: Visited,
    ) -> Result<(), ReportError> {
        let (outcome, range, at_length) = self.step_of(id).ok_or(ReportError::UnknownOrder)?;
        let summed_up = |run: &VisitRun| run.found() == Some(VisitState::Unchanged);
        if at_length && report.runs.iter().any(summed_up) {
            *outcome = VisitOutcome::Failed;
            return Err(ReportError::WrongPages);
        }
        if report.end == range.start && report.runs.is_empty() {
            // Its app was in the way.
            *outcome = VisitOutcome::Failed;
            return Ok(());
        }
        let progress = report.end > range.start && report.end <= range.end();
        let looked_at = PageRun::between(range.start, report.end);
        if !progress || !is_ascending(looked_at, &report.runs) {
            *outcome = VisitOutcome::Failed;
            return Err(ReportError::WrongPages);
        }
        *outcome = VisitOutcome::Arrived(report);
        Ok(())
    }

    /// The agent could not look.
    pub(super) fn visit_failed(&mut self, id: OrderId) {
        if let Some((outcome, ..)) = self.step_of(id) {
            *outcome = VisitOutcome::Failed;
        }
    }

    /// The mm is gone, and its number may soon be another's: reports that wait for their turn are void.
    pub(super) fn fail_visits(&mut self, gone: MmId) {
        for step in &mut self.steps {
            if let Step::Visit { mm, outcome, .. } = step
                && *mm == gone
            {
                *outcome = VisitOutcome::Failed;
            }
        }
    }

    /// The agent may have looked, but what it saw will never be known.
    pub(super) fn visit_lost(&mut self, order: OrderId) {
        let step = self.steps.iter().find_map(|step| match step {
            Step::Visit { id, mm, range, .. } if *id == Some(order) => Some((*mm, *range)),
            Step::Visit { .. } | Step::End(_) => None,
        });
        if let Some((mm, range)) = step
            && let Some(mm) = self.mms.get_mut(mm)
        {
            mm.items.each_within(range, RmapItem::doubt);
        }
        self.visit_failed(order);
    }

    /// Takes the steps that are ready, in order. Returns whether there was any.
    pub(super) fn take_steps(&mut self) -> bool {
        let mut any = false;
        while let Some(step) = self.steps.front() {
            if let Step::Visit { outcome, .. } = step {
                let waits = matches!(outcome, VisitOutcome::Planned | VisitOutcome::Waiting);
                if waits || self.foundings() >= MOST_FOUNDINGS {
                    break;
                }
            }
            any = true;
            match self.steps.pop_front().expect("it was looked at above") {
                Step::End(mm) => self.end_of_mm(mm),
                Step::Visit {
                    mm,
                    range,
                    reserved,
                    bounded,
                    outcome,
                    ..
                } => match outcome {
                    VisitOutcome::Arrived(report) => {
                        self.take_visit(mm, range, reserved, bounded, report);
                    }
                    // What an agent could not look at stays as it was until the next scan.
                    VisitOutcome::Planned | VisitOutcome::Waiting | VisitOutcome::Failed => {
                        self.batch_mut().budget += reserved;
                        if bounded {
                            self.list.page = range.end();
                        }
                    }
                },
            }
        }
        any
    }

    /// An agent may say that pages are as last reported of which the report was lost, or has been overtaken by events. Its
    /// report ends there then, and what it said of the pages behind is as good as lost. Returns the pages.
    fn cut_what_is_unknown(&mut self, id: MmId, report: &mut Visited) -> Option<PageRun> {
        let sums_up = |run: &VisitRun| run.found() == Some(VisitState::Unchanged);
        let is_unknown = |run: &VisitRun| sums_up(run) && !self.can_pass(id, run);
        let at = report.runs.iter().position(is_unknown)?;
        let run = report.runs.get(at)?.pages();
        if let Some(mm) = self.mms.get_mut(id) {
            for lost in report.runs.drain(at..).filter(|run| !sums_up(run)) {
                mm.items.each_within(lost.pages(), RmapItem::doubt);
            }
        }
        report.end = run.start;
        Some(run)
    }

    fn take_visit(
        &mut self,
        id: MmId,
        range: PageRun,
        reserved: u64,
        bounded: bool,
        mut report: Visited,
    ) {
        let unknown = self.cut_what_is_unknown(id, &mut report);
        let looked_at = PageRun::between(range.start, report.end);
        let before = self.tally.scanned;
        let passed = self.decide(id, looked_at, &report);
        let counted = self.tally.scanned - before;
        self.batch_mut().visited += counted;
        if let Some(mm) = self.mms.get_mut(id) {
            mm.stride = next_stride(mm.stride, looked_at.len, report.runs.len());
            if mm.sums_up {
                mm.reach = next_reach(mm.reach, passed, &report);
            }
        }
        let answers = self.mms.get(id).is_some_and(Mm::answers);
        let sums_up = self.mms.get(id).is_some_and(|mm| mm.sums_up);
        let end = match unknown {
            // Only of these pages everything is wanted.
            Some(run) if bounded => run.end(),
            _ => range.end(),
        };
        if bounded {
            self.list.page = report.end;
        }
        if answers && report.end < range.end() && (!bounded || unknown.is_some()) {
            let left = reserved.saturating_sub(counted).max(1);
            let limit = u32::try_from(left).unwrap_or(VISIT_PAGES).min(MOST_VISITED);
            if bounded {
                self.list.page = end;
            }
            self.steps.push_front(Step::Visit {
                id: None,
                mm: id,
                range: PageRun::between(report.end, end),
                limit,
                at_length: unknown.is_some() || !sums_up,
                reserved: left,
                bounded,
                outcome: VisitOutcome::Planned,
            });
            return;
        }
        self.batch_mut().budget += reserved.saturating_sub(counted);
    }
}

/// How many pages the next visit may count: more where they are as they were and only counted, because little is to be said
/// of them and nothing done.
fn next_reach(reach: u32, passed: u64, report: &Visited) -> u32 {
    let counted: u64 = report.runs.iter().map(VisitRun::counted).sum();
    if counted.saturating_sub(passed) <= counted / 8 {
        reach.saturating_mul(4).min(MOST_VISITED)
    } else {
        VISIT_PAGES
    }
}

/// Whether the runs lie in `range`, one after the other.
fn is_ascending(range: PageRun, runs: &[VisitRun]) -> bool {
    let mut next = range.start;
    runs.iter().all(|run| {
        let pages = run.pages();
        let follows = pages.is_valid() && pages.start >= next && pages.end() <= range.end();
        next = pages.start.saturating_add(pages.len);
        follows
    })
}

/// Runs of pages that smart scan passes over now: as many as an order carries.
fn skip_list(mm: &Mm, range: PageRun) -> Vec<PageRun> {
    let mut skip: Vec<PageRun> = Vec::new();
    for page in mm.items.to_skip(range) {
        let full = skip.len() == MAX_RUNS;
        match skip.last_mut() {
            Some(last) if last.end() == page => last.len += 1,
            _ if full => break,
            _ => skip.push(PageRun {
                start: page,
                len: 1,
            }),
        }
    }
    skip
}

/// Looks further ahead where nothing is found, so that huge empty mappings cost few orders.
fn next_stride(stride: u64, looked_at: u64, runs: usize) -> u64 {
    let dense = runs as u64 > looked_at / 512;
    if dense {
        VISIT_PAGES.into()
    } else {
        (stride * 8).min(MAX_STRIDE)
    }
}
