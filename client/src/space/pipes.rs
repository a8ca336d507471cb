//! Pages that are in a pipe.
//!
//! `vmsplice` puts pages into a pipe by a reference that the kernel tells nobody of, and who writes to them while they are
//! there changes what the pipe's reader gets. So they are noted by whoever stands before that call, and do not merge until
//! the pipe has been found empty. A note may outlive its page in the pipe, never the other way round.

use super::{PATIENCE, Space, Tables};
use crate::pipe_ends::{self, PipeId};
use ksm_engine::page::PageRun;
use zerocopy::FromZeros;

/// Notes of one process.
pub const SPLICES: usize = 64;

/// Pages that were put into a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(C)]
struct Splice {
    run: PageRun,
    pipe: PipeId,
    /// Another one whenever it is made again.
    number: u64,
}

/// All notes. All-zero bytes are none.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub(super) struct Pipes {
    splices: [Splice; SPLICES],
    count: usize,
    numbers: u64,
    /// Calls that have begun and not ended: their pages may not be in the pipe yet.
    under_way: u64,
    /// There was no room for a note: any page may be in a pipe.
    lost: u64,
}

impl Pipes {
    fn all(&self) -> &[Splice] {
        self.splices.get(..self.count).unwrap_or(&[])
    }

    /// Notes pages; false if there is no room.
    fn add(&mut self, run: PageRun, pipe: PipeId) -> bool {
        self.numbers += 1;
        let number = self.numbers;
        let touches = |old: &Splice| run.start <= old.run.end() && old.run.start <= run.end();
        let known = self.splices.iter_mut().take(self.count);
        for old in known.filter(|old| old.pipe == pipe) {
            if touches(old) {
                let (start, end) = (old.run.start.min(run.start), old.run.end().max(run.end()));
                (old.run, old.number) = (PageRun::between(start, end), number);
                return true;
            }
        }
        let Some(place) = self.splices.get_mut(self.count) else {
            return false;
        };
        *place = Splice { run, pipe, number };
        self.count += 1;
        true
    }

    fn retain(&mut self, keep: impl Fn(&Splice) -> bool) {
        let mut kept = 0;
        for i in 0..self.count {
            if let Some(splice) = self.splices.get(i).copied().filter(&keep)
                && let Some(place) = self.splices.get_mut(kept)
            {
                *place = splice;
                kept += 1;
            }
        }
        self.count = kept;
    }

    /// Which of up to 64 pages may be in a pipe.
    pub(super) fn holding(&self, run: PageRun) -> u64 {
        if self.lost != 0 {
            return u64::MAX;
        }
        let (first, end) = (run.start, run.end().min(run.start + 64));
        let inside = |splice: &Splice| {
            let part = splice.run.start.max(first)..splice.run.end().min(end);
            part.fold(0, |mask, page| mask | 1 << (page - first))
        };
        self.all()
            .iter()
            .fold(0, |mask, splice| mask | inside(splice))
    }

    /// The pages are not mapped there any more.
    pub(super) fn forget(&mut self, run: PageRun) {
        if self.count > 0 {
            self.retain(|splice| !run.covers(splice.run));
        }
    }

    /// The pages have been moved to those from `to` on.
    pub(super) fn moved(&mut self, from: PageRun, to: u64) {
        for i in 0..self.count {
            let Some(Splice { run, pipe, .. }) = self.splices.get(i).copied() else {
                return;
            };
            let (start, end) = (run.start.max(from.start), run.end().min(from.end()));
            if start < end {
                let there = PageRun::between(to + (start - from.start), to + (end - from.start));
                self.lost |= u64::from(!self.add(there, pipe));
            }
        }
    }

    /// In a child just forked, which has one thread.
    pub(super) fn forget_calls(&mut self) {
        self.under_way = 0;
    }
}

impl Tables {
    /// Which of up to 64 pages may be in a pipe.
    pub(crate) fn in_pipes(&self, run: PageRun) -> u64 {
        self.pipes.holding(run)
    }

    /// Notes pages that a call puts into a pipe. False if there is no room.
    pub(super) fn note_splice(&mut self, run: PageRun, pipe: PipeId) -> bool {
        run.len == 0 || self.pipes.add(run, pipe)
    }

    pub(super) fn count_splice(&mut self, has_begun: bool) {
        let calls = &mut self.pipes.under_way;
        *calls = match has_begun {
            true => calls.saturating_add(1),
            false => calls.saturating_sub(1),
        };
    }

    pub(super) fn lose_splices(&mut self) {
        self.pipes.lost = 1;
    }
}

impl Space {
    /// Forgets pages whose pipes have been emptied since. For the agent of the process `app`, which holds nothing.
    pub fn forget_emptied_pipes(&self, app: u32) {
        let Some(asked) = self.step(PATIENCE).and_then(|tables| asked(&tables)) else {
            return;
        };
        let filled = asked.filled(app);
        if let Some(mut tables) = self.step(PATIENCE) {
            asked.forget_emptied(filled, &mut tables);
        }
    }

    /// The same for a thread of the app.
    pub fn make_room_for_splices(&self) {
        let asked = asked(&self.lock());
        if let Some(asked) = asked {
            let filled = asked.filled(super::release::process_id());
            asked.forget_emptied(filled, &mut self.lock());
        }
    }
}

/// Notes to be asked about, as they were at one moment.
struct Asked {
    splices: [Splice; SPLICES],
    pipes: [PipeId; SPLICES],
    count: usize,
}

/// `None` if there are none, or one may be of pages that are not in their pipe yet.
fn asked(tables: &Tables) -> Option<Asked> {
    let Pipes {
        splices,
        count,
        under_way,
        ..
    } = tables.pipes;
    (count > 0 && under_way == 0).then(|| Asked {
        pipes: splices.map(|splice| splice.pipe),
        splices,
        count,
    })
}

impl Asked {
    /// Which of the pipes have something in them.
    fn filled(&self, app: u32) -> u64 {
        pipe_ends::filled(app, self.pipes.get(..self.count).unwrap_or(&[]))
    }

    fn forget_emptied(&self, filled: u64, tables: &mut Tables) {
        let empty = |i: usize| filled & 1 << i == 0;
        let asked = self.splices.iter().take(self.count).enumerate();
        tables.pipes.retain(|splice| {
            !asked
                .clone()
                .any(|(i, old)| empty(i) && old.number == splice.number)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, len: u64) -> PageRun {
        PageRun { start, len }
    }

    fn pipe(inode: u64) -> PipeId {
        PipeId { device: 1, inode }
    }

    #[test]
    fn pages_are_held_until_their_own_note_goes() {
        let mut pipes = Pipes::new_zeroed();
        assert!(pipes.add(run(100, 2), pipe(1)) && pipes.add(run(101, 3), pipe(2)));
        assert_eq!(pipes.holding(run(98, 64)), 0b11_1100);
        pipes.retain(|splice| splice.pipe != pipe(1));
        assert_eq!(pipes.holding(run(98, 64)), 0b11_1000);
        pipes.forget(run(100, 10));
        assert_eq!(pipes.holding(run(98, 64)), 0);
    }

    #[test]
    fn pages_that_touch_in_one_pipe_take_one_note() {
        let mut pipes = Pipes::new_zeroed();
        for page in 0..1000 {
            assert!(pipes.add(run(page, 1), pipe(1)));
        }
        assert_eq!(pipes.count, 1);
        assert_eq!(pipes.holding(run(960, 64)), (1 << 40) - 1);
    }

    #[test]
    fn without_room_for_a_note_every_page_is_held() {
        let mut pipes = Pipes::new_zeroed();
        for i in 0..SPLICES as u64 {
            assert!(pipes.add(run(10 * i, 1), pipe(1)));
        }
        assert!(!pipes.add(run(5, 1), pipe(1)));
        assert_eq!(pipes.holding(run(4, 3)), 0);
        pipes.moved(run(0, 10), 5000);
        assert_eq!(pipes.holding(run(4, 3)), u64::MAX);
    }

    #[test]
    fn a_note_goes_where_its_pages_are_moved() {
        let mut pipes = Pipes::new_zeroed();
        assert!(pipes.add(run(100, 4), pipe(1)));
        pipes.moved(run(102, 10), 1000);
        assert_eq!(pipes.holding(run(1000, 64)), 0b11);
    }

    #[test]
    fn what_is_under_way_is_not_asked_about() {
        let space = Space::create().expect("memory");
        let mut tables = space.lock();
        tables.count_splice(true);
        assert!(tables.note_splice(run(100, 1), pipe(1)));
        assert!(asked(&tables).is_none());
        tables.count_splice(false);
        let before = asked(&tables).expect("one note");
        // The same pages again, after it was asked.
        assert!(tables.note_splice(run(100, 1), pipe(1)));
        before.forget_emptied(0, &mut tables);
        assert_eq!(tables.in_pipes(run(100, 1)), 1);
        asked(&tables)
            .expect("one note")
            .forget_emptied(0, &mut tables);
        assert_eq!(tables.in_pipes(run(100, 1)), 0);
    }
}
