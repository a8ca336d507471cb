//! A model agent: what `ksm_engine::order` says an agent does, without memory.
//!
//! It is honest here; see `lie` for the others. Orders of an honest engine are checked as they are carried out:
//! a slot that an agent is told to map is of its own domain, and holds what it reported of the page.

use super::arenas::{Arenas, Frame};
use super::content::Digests;
use super::process::{Page, Process, Seen};
use super::{Content, check};
use ksm_engine::digest::Salt;
use ksm_engine::order::{
    FRAME_SHARED, IN_HUGE_PAGE, MapRun, Order, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, PageRun, Slot};

/// How an agent takes an order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mood {
    /// It does this many pages as ordered, and then ...
    pub willing: Option<u32>,
    /// ... gives this answer for each further page. A visit or an unmerge ends early; a visit that ends before its
    /// first page is refused.
    pub refusal: Option<Outcome>,
}

/// A report that owns its parts.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Visited {
        end: u64,
        zero_pages: u64,
        runs: Vec<VisitRun>,
        digests: Vec<Digest>,
    },
    Done(Vec<OutcomeRun>),
    Unmerged(u64),
    Counted(u64),
}

impl Answer {
    pub(crate) fn borrow(&self) -> ReportRef<'_> {
        match self {
            Self::Visited {
                end,
                zero_pages,
                runs,
                digests,
            } => ReportRef::Visited {
                end: *end,
                zero_pages: *zero_pages,
                runs,
                digests,
            },
            Self::Done(outcomes) => ReportRef::Done { outcomes },
            Self::Unmerged(end) => ReportRef::Unmerged { end: *end },
            Self::Counted(zero_pages) => ReportRef::Counted {
                zero_pages: *zero_pages,
            },
        }
    }
}

/// What an agent needs to carry out orders.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) daemon: u32,
    pub(crate) salt: Salt,
    pub(crate) arenas: &'a Arenas,
    pub(crate) digests: &'a mut Digests,
}

/// Pages that are summed up together if nothing has changed in them.
const BLOCK: u64 = 4;

/// How a visit is to be made.
struct How<'a> {
    skip: &'a [PageRun],
    nodes: bool,
    brief: bool,
}

const NO_SLOT: Slot = Slot {
    arena: ArenaId(0),
    index: 0,
};

impl Process {
    /// Carries out one order.
    pub(crate) fn obey(&mut self, order: &Order, around: &mut Surroundings<'_>) -> Answer {
        let mood = std::mem::take(&mut self.mood);
        let willing = mood.willing.unwrap_or(u32::MAX);
        match order {
            Order::Visit { range, .. } if willing == 0 => Answer::Done(vec![OutcomeRun {
                start: range.start,
                len: 1,
                outcome: mood.refusal.unwrap_or(Outcome::Busy) as u32,
            }]),
            Order::Visit {
                range,
                limit,
                skip,
                nodes,
                brief,
            } => {
                let limit = (*limit).min(willing);
                let how = How {
                    skip,
                    nodes: *nodes,
                    brief: *brief && !self.is_wordy,
                };
                self.visit(*range, limit, how, around)
            }
            Order::Donate { runs } => {
                self.donation.borrow_mut().clear();
                self.each_page(runs, mood, Self::donate)
            }
            Order::Map { arena, runs } => {
                let slots = self.slots(around, *arena, runs);
                self.each_page(&pages(runs), mood, |process, page| {
                    process.map(page, slots(page), around)
                })
            }
            Order::Zero { runs } => self.each_page(runs, mood, Self::zero),
            Order::Split { runs } => self.each_page(runs, mood, Self::split),
            Order::Unmerge { range } => {
                let end = range.end().min(range.start.saturating_add(willing.into()));
                for page in range.start..end {
                    self.unmerge(page, around.arenas);
                }
                Answer::Unmerged(end)
            }
            Order::Count => Answer::Counted(self.zeroed()),
            Order::Remap { arena, runs } => {
                let slots = self.slots(around, *arena, runs);
                self.each_page(&pages(runs), mood, |process, page| {
                    process.remap(page, slots(page), around)
                })
            }
        }
    }

    /// The slot of each page of an order, whose arena is known from now on.
    fn slots<'o>(
        &mut self,
        around: &Surroundings<'_>,
        arena: ArenaId,
        runs: &'o [MapRun],
    ) -> impl Fn(u64) -> Frame + use<'o> {
        let key = around.arenas.key(around.daemon, arena);
        self.learn(key, arena);
        move |page| {
            let run = runs
                .iter()
                .find(|run| run.pages().contains(page))
                .expect("asked for pages of the order only");
            let offset = u32::try_from(page - run.start).expect("a run is no longer than 32 bits");
            Frame {
                daemon: key.0,
                slot: Slot {
                    arena: key.1,
                    index: run.slot + offset,
                },
            }
        }
    }

    fn each_page(
        &mut self,
        runs: &[PageRun],
        mood: Mood,
        mut each: impl FnMut(&mut Self, u64) -> Outcome,
    ) -> Answer {
        let willing = mood.willing.unwrap_or(u32::MAX) as usize;
        let mut outcomes: Vec<OutcomeRun> = Vec::new();
        for (done, page) in runs.iter().flat_map(|run| run.start..run.end()).enumerate() {
            let outcome = if done < willing {
                each(self, page)
            } else {
                mood.refusal.unwrap_or(Outcome::Busy)
            };
            match outcomes.last_mut() {
                Some(last) if last.pages().end() == page && last.outcome == outcome as u32 => {
                    last.len += 1;
                }
                _ => outcomes.push(OutcomeRun {
                    start: page,
                    len: 1,
                    outcome: outcome as u32,
                }),
            }
        }
        Answer::Done(outcomes)
    }

    fn visit(
        &mut self,
        range: PageRun,
        limit: u32,
        How { skip, nodes, brief }: How<'_>,
        around: &mut Surroundings<'_>,
    ) -> Answer {
        let mut runs = Vec::new();
        let mut digests = Vec::new();
        let mut counted = 0;
        let mut end = range.end();
        let mut unchanged_to = range.start;
        for page in range.start..range.end() {
            if page < unchanged_to {
                continue;
            }
            if counted == limit {
                end = page;
                break;
            }
            if brief && page.is_multiple_of(BLOCK) {
                let block = PageRun::between(page, range.end().min(page + BLOCK));
                if let Some(count) = self.unchanged(block, skip)
                    && counted + count <= limit
                {
                    counted += count;
                    push_unchanged(&mut runs, block, count);
                    unchanged_to = block.end();
                    continue;
                }
            }
            let skipped = skip.iter().any(|run| run.contains(page));
            let Some((state, slot)) = self.look_at(page, skipped, around, &mut digests) else {
                self.seen.remove(&page);
                self.said.remove(&page);
                continue;
            };
            counted += u32::from(state != VisitState::Skipped);
            let ordinary = !matches!(state, VisitState::Merged | VisitState::Foreign);
            let slot = if nodes && ordinary {
                let node = self.node(page);
                self.seen
                    .entry(page)
                    .and_modify(|seen| seen.node = Some(node));
                Slot::of_node(node)
            } else {
                slot
            };
            let shared = if self.shares_frame(page) {
                FRAME_SHARED
            } else {
                0
            };
            let huge = if ordinary && self.is_huge(page) {
                IN_HUGE_PAGE
            } else {
                0
            };
            let more = shared | huge;
            push_visit(&mut runs, page, state, more, slot);
            // What a page that was passed over is has been said before.
            if state != VisitState::Skipped {
                self.said.insert(page, (state, more, slot));
            }
        }
        Answer::Visited {
            end,
            zero_pages: self.zeroed(),
            runs,
            digests,
        }
    }

    /// How many pages of a block count, if all of it is as it was when it was last reported.
    fn unchanged(&self, block: PageRun, skip: &[PageRun]) -> Option<u32> {
        let mut count = 0;
        for page in block.start..block.end() {
            let there = self
                .pages
                .get(&page)
                .filter(|page| !matches!(page, Page::ReadOnce | Page::Zeroed));
            if !self.mergeable.contains(&page) {
                // What is summed up lies in one region.
                return None;
            }
            let shared = if self.shares_frame(page) {
                FRAME_SHARED
            } else {
                0
            };
            match (there, self.said.get(&page)) {
                (None, None) => {}
                (Some(Page::Merged { frame }), Some((VisitState::Merged, _, slot))) => {
                    let name = self.names.get(&frame.arena());
                    if name != Some(&slot.arena) || frame.slot.index != slot.index {
                        return None;
                    }
                    count += 1;
                }
                (
                    Some(Page::Private(content) | Page::Broken(content)),
                    Some((VisitState::Calm | VisitState::CalmKnown, was_shared, _)),
                ) => {
                    let seen = self.seen.get(&page)?;
                    let broken = matches!(there, Some(Page::Broken(_)));
                    let huge = self.is_huge(page);
                    let more = if huge { IN_HUGE_PAGE | shared } else { shared };
                    if seen.content != *content || !seen.known || broken || *was_shared != more {
                        return None;
                    }
                    count += u32::from(!skip.iter().any(|run| run.contains(page)));
                }
                _ => return None,
            }
        }
        Some(count)
    }

    fn look_at(
        &mut self,
        page: u64,
        skipped: bool,
        around: &mut Surroundings<'_>,
        digests: &mut Vec<Digest>,
    ) -> Option<(VisitState, Slot)> {
        if !self.mergeable.contains(&page) {
            return None;
        }
        let (content, broken) = match self.pages.get(&page)? {
            Page::ReadOnce | Page::Zeroed => return None,
            Page::Merged { frame } => {
                let Some(arena) = self.names.get(&frame.arena()) else {
                    return Some((VisitState::Foreign, NO_SLOT));
                };
                let index = frame.slot.index;
                let slot = Slot {
                    arena: *arena,
                    index,
                };
                return Some((VisitState::Merged, slot));
            }
            Page::Private(content) => (*content, false),
            Page::Broken(content) => (*content, true),
        };
        if skipped {
            return Some((VisitState::Skipped, NO_SLOT));
        }
        let calm = self.seen.get(&page).filter(|seen| seen.content == content);
        let known = calm.is_some_and(|seen| seen.known);
        let state = match calm {
            None => VisitState::Changed,
            Some(_) if broken && self.may_pin => VisitState::Unsure,
            Some(_) if content == Content::ZERO => VisitState::CalmZero,
            Some(_) if known => VisitState::CalmKnown,
            Some(_) => {
                digests.push(around.digests.of(around.salt, content));
                VisitState::Calm
            }
        };
        let told = calm.is_some_and(|seen| seen.told) || state == VisitState::Calm;
        let known = known || state == VisitState::Calm;
        let node = None;
        self.seen.insert(
            page,
            Seen {
                content,
                told,
                known,
                node,
            },
        );
        Some((state, NO_SLOT))
    }

    fn donate(&mut self, page: u64) -> Outcome {
        let (content, outcome) = match self.pages.get(&page) {
            Some(Page::Private(content) | Page::Broken(content)) => (*content, Outcome::Done),
            _ => (Content::ZERO, Outcome::Gone),
        };
        self.donation.borrow_mut().push(content);
        outcome
    }

    /// What a hold of the page would find before its bytes are compared.
    fn hold(&self, page: u64) -> Result<Content, Outcome> {
        if !self.mergeable.contains(&page) {
            return Err(Outcome::Unsuitable);
        }
        match self.pages.get(&page) {
            None | Some(Page::ReadOnce | Page::Zeroed) => Err(Outcome::Gone),
            Some(Page::Merged { .. }) => Err(Outcome::Unsuitable),
            Some(Page::Broken(_)) if self.may_pin => Err(Outcome::Unsure),
            Some(_) if self.pinned.contains(&page) => Err(Outcome::Pinned),
            Some(Page::Private(content) | Page::Broken(content)) => Ok(*content),
        }
    }

    fn map(&mut self, page: u64, frame: Frame, around: &Surroundings<'_>) -> Outcome {
        if !self.liar {
            check::may_be_mapped(self, page, frame, around.arenas);
        }
        let content = match self.hold(page) {
            Ok(content) => content,
            Err(outcome) => return outcome,
        };
        self.split_huge(page);
        if content != around.arenas.content(frame) {
            return Outcome::Changed;
        }
        self.pages.insert(page, Page::Merged { frame });
        self.frames.remove(&page);
        self.inherited.remove(&page);
        Outcome::Done
    }

    fn split(&mut self, page: u64) -> Outcome {
        match self.hold(page) {
            Ok(_) => {
                self.split_huge(page);
                Outcome::Done
            }
            Err(outcome) => outcome,
        }
    }

    fn zero(&mut self, page: u64) -> Outcome {
        let held = self.hold(page);
        if held.is_ok() {
            self.split_huge(page);
        }
        match held {
            Ok(Content::ZERO) => {
                self.pages.insert(page, Page::Zeroed);
                self.frames.remove(&page);
                Outcome::Done
            }
            Ok(_) => Outcome::Changed,
            Err(outcome) => outcome,
        }
    }

    fn remap(&mut self, page: u64, frame: Frame, around: &Surroundings<'_>) -> Outcome {
        let Some(Page::Merged { frame: old }) = self.page(page) else {
            return Outcome::Changed;
        };
        if !self.liar {
            check::may_be_remapped(self, page, old, frame, around.arenas);
        } else if around.arenas.content(old) != around.arenas.content(frame) {
            return Outcome::Changed;
        }
        self.pages.insert(page, Page::Merged { frame });
        Outcome::Done
    }
}

fn pages(runs: &[MapRun]) -> Vec<PageRun> {
    runs.iter().map(MapRun::pages).collect()
}

fn push_unchanged(runs: &mut Vec<VisitRun>, block: PageRun, counted: u32) {
    let len = u32::try_from(block.len).expect("a block is short");
    match runs.last_mut() {
        Some(last)
            if last.found() == Some(VisitState::Unchanged) && last.pages().end() == block.start =>
        {
            last.len += len;
            last.slot.index += counted;
        }
        _ => runs.push(VisitRun::unchanged(block.start, len, counted)),
    }
}

fn push_visit(runs: &mut Vec<VisitRun>, page: u64, state: VisitState, more: u32, slot: Slot) {
    let has_slot = state == VisitState::Merged;
    if let Some(last) = runs.last_mut() {
        let next = Slot {
            index: last.slot.index + last.len,
            ..last.slot
        };
        let same = last.state == state as u32 | more && last.pages().end() == page;
        if same && (if has_slot { next } else { last.slot }) == slot {
            last.len += 1;
            return;
        }
    }
    runs.push(VisitRun {
        start: page,
        len: 1,
        state: state as u32 | more,
        slot,
    });
}
