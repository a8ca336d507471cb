//! Agents that do not tell the truth.
//!
//! A lie is made from the honest answer to an order. Whatever it is, it may cost the liar's own process its merging,
//! and must cost nobody else anything.

use super::Content;
use super::agent::Answer;
use super::process::Process;
use ksm_engine::order::{OutcomeRun, VisitRun, VisitState};
use ksm_engine::page::{ArenaId, Digest, Slot};

/// How an answer is bent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Leaves out the last part.
    Short,
    /// Adds a part.
    Long,
    /// Says the first part twice.
    Twice,
    /// In the wrong order.
    Backwards,
    /// Other pages, by this much.
    Elsewhere(u8),
    /// Numbers that mean nothing.
    Nonsense(u32),
    /// Everything is calm and has this digest.
    Digest(u8),
    /// Everything is mapped to slots of this arena from this index on.
    Slots(u8, u8),
    /// Nothing was done, but the answer is that everything was.
    Idle,
    /// The answer to another kind of order.
    OtherKind,
    /// Ends somewhere else.
    End(u8),
    /// Writes something else into the donation buffer.
    Donation(u8),
    /// Reports on an order that was not given.
    Invented(u8),
}

const DONE: u32 = 0;

impl Lie {
    /// Bends the honest `answer`.
    pub(crate) fn bend(self, process: &Process, answer: Answer) -> Answer {
        match (self, answer) {
            (Self::Donation(content), answer) => {
                for page in process.donation.borrow_mut().iter_mut() {
                    *page = Content(content.into());
                }
                answer
            }
            (
                lie,
                Answer::Visited {
                    end,
                    zero_pages,
                    mut runs,
                    mut digests,
                },
            ) => {
                let end = match lie {
                    Self::End(by) => end.wrapping_add(u64::from(by)).wrapping_sub(128),
                    Self::OtherKind => return Answer::Unmerged(end),
                    _ => end,
                };
                if matches!(lie, Self::Short) {
                    digests.pop();
                }
                lie.bend_visit(&mut runs, &mut digests);
                let zero_pages = zero_pages.wrapping_sub(u64::from(lie == Self::Twice));
                Answer::Visited {
                    end,
                    zero_pages,
                    runs,
                    digests,
                }
            }
            (lie, Answer::Done(mut outcomes)) => {
                lie.bend_outcomes(&mut outcomes);
                match lie {
                    Self::OtherKind => Answer::Unmerged(0),
                    _ => Answer::Done(outcomes),
                }
            }
            (Self::End(by), Answer::Unmerged(end)) => {
                Answer::Unmerged(end.wrapping_add(u64::from(by)).wrapping_sub(128))
            }
            (Self::OtherKind, Answer::Unmerged(_)) => Answer::Done(Vec::new()),
            (_, Answer::Unmerged(end)) => Answer::Unmerged(end),
            (Self::OtherKind, Answer::Counted(_)) => Answer::Done(Vec::new()),
            (_, Answer::Counted(pages)) => Answer::Counted(pages.wrapping_mul(1 << 40)),
        }
    }

    fn bend_visit(self, runs: &mut Vec<VisitRun>, digests: &mut Vec<Digest>) {
        match self {
            Self::Short => {
                runs.pop();
            }
            Self::Long => runs.extend(runs.last().map(|last| VisitRun {
                start: last.pages().end(),
                ..*last
            })),
            Self::Twice => runs.extend(runs.first().copied()),
            Self::Backwards => runs.reverse(),
            Self::Elsewhere(by) => {
                for run in runs.iter_mut() {
                    run.start = run.start.wrapping_add(u64::from(by)).wrapping_sub(128);
                }
            }
            Self::Nonsense(number) => {
                for run in runs.iter_mut() {
                    match number % 3 {
                        0 => run.state = number,
                        1 => run.len = number,
                        _ => run.start = u64::from(number) << 32,
                    }
                }
            }
            Self::Digest(byte) => {
                digests.clear();
                for run in runs.iter_mut() {
                    run.state = VisitState::Calm as u32;
                    digests.extend((0..run.len).map(|_| Digest([byte; 16])));
                }
            }
            Self::Slots(arena, index) => {
                for run in runs.iter_mut() {
                    run.state = VisitState::Merged as u32;
                    run.slot = Slot {
                        arena: ArenaId(arena.into()),
                        index: index.into(),
                    };
                }
            }
            Self::Idle | Self::OtherKind | Self::End(_) | Self::Donation(_) | Self::Invented(_) => {
            }
        }
    }

    fn bend_outcomes(self, outcomes: &mut Vec<OutcomeRun>) {
        match self {
            Self::Short => {
                outcomes.pop();
            }
            Self::Long | Self::Twice => outcomes.extend(outcomes.first().copied()),
            Self::Backwards => outcomes.reverse(),
            Self::Elsewhere(by) => {
                for run in outcomes.iter_mut() {
                    run.start = run.start.wrapping_add(u64::from(by)).wrapping_sub(128);
                }
            }
            Self::Nonsense(number) => {
                for run in outcomes.iter_mut() {
                    match number % 3 {
                        0 => run.outcome = number,
                        1 => run.len = number,
                        _ => run.start = u64::from(number) << 32,
                    }
                }
            }
            Self::Idle => {
                for run in outcomes.iter_mut() {
                    run.outcome = DONE;
                }
            }
            Self::Digest(_)
            | Self::Slots(..)
            | Self::OtherKind
            | Self::End(_)
            | Self::Donation(_)
            | Self::Invented(_) => {}
        }
    }
}
