//! The order to donate: copies of pages for the daemon, which computes their digest itself.

use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bits, steps};
use crate::agent::merge::{mark, registered_parts};
use crate::space::states::IN_FILE;
use crate::space::{PATIENCE, Tables};
use crate::sys::pagemap::PageIs;
use crate::sys::read::Reading;
use ksm_engine::order::Outcome;
use ksm_engine::page::PageRun;

/// Pages that one question to the kernel is about, with what is between them.
const ASKED_TOGETHER: u64 = 512;

/// Pieces of an order that are read at one time, at most [`STEP_PAGES`] pages of them.
struct Batch {
    pieces: [PageRun; STEP_PAGES],
    count: usize,
    pages: usize,
    /// Where the first page goes.
    place: usize,
}

impl Batch {
    fn at(place: usize) -> Self {
        Self {
            pieces: [PageRun { start: 0, len: 0 }; STEP_PAGES],
            count: 0,
            pages: 0,
            place,
        }
    }

    /// False if it is too full for the piece.
    fn add(&mut self, piece: PageRun) -> bool {
        let pages = self.pages + usize::try_from(piece.len).unwrap_or(STEP_PAGES + 1);
        if pages > STEP_PAGES {
            return false;
        }
        if let Some(free) = self.pieces.get_mut(self.count) {
            *free = piece;
            self.count += 1;
            self.pages = pages;
        }
        true
    }

    fn pieces(&self) -> &[PageRun] {
        self.pieces.get(..self.count).unwrap_or(&[])
    }
}

impl Agent {
    pub(super) fn donate(&mut self, runs: &[PageRun], out: &mut ReportBuffer) {
        let mut busy = false;
        let mut batch = Batch::at(0);
        for piece in runs.iter().copied().flat_map(steps) {
            if !batch.add(piece) {
                busy = self.donate_batch(&batch, busy, out);
                batch = Batch::at(batch.place + batch.pages);
                batch.add(piece);
            }
        }
        self.donate_batch(&batch, busy, out);
    }

    /// Whether the app is in the way, now or already before.
    fn donate_batch(&mut self, batch: &Batch, busy: bool, out: &mut ReportBuffer) -> bool {
        let mut outcomes = [Outcome::Busy; STEP_PAGES];
        let tables = (!busy).then(|| self.space.step(PATIENCE)).flatten();
        if let Some(tables) = &tables {
            let whole = |piece: &PageRun| {
                let found = tables.registered(*piece);
                found.is_some_and(|pages| pages.run() == *piece)
            };
            let all = batch.pieces().iter().all(whole) && self.are_there(tables, batch.pieces());
            let got = match all {
                true => self.read_to_donate(batch.pieces(), batch.place),
                false => 0,
            };
            if got == batch.pages {
                outcomes = [Outcome::Done; STEP_PAGES];
            } else {
                self.donate_piecemeal(tables, batch, &mut outcomes);
            }
        }
        let mut first = 0;
        for piece in batch.pieces() {
            let len = usize::try_from(piece.len).unwrap_or(0);
            out.outcomes(*piece, outcomes.get(first..first + len).unwrap_or(&[]));
            first += len;
        }
        tables.is_none()
    }

    /// Whether all pages are in the page table, or in a file mapping of ours. To read one that is not would be an access that the
    /// app may be watching for.
    fn are_there(&self, tables: &Tables, pieces: &[PageRun]) -> bool {
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            let around = PageRun {
                start: first.start,
                len: first.len.max(ASKED_TOGETHER),
            };
            let is_near = |piece: &&PageRun| piece.intersection(around) == Some(**piece);
            let (near, further) = rest.split_at(rest.iter().take_while(is_near).count().max(1));
            let end = near.iter().map(|piece| piece.end()).max();
            let span = PageRun::between(first.start, end.unwrap_or(first.end()));
            let Ok(found) = self.pagemap.scan_writes(span) else {
                return false;
            };
            let in_file = |page| tables.states.get(page).flags.intersects(IN_FILE);
            let is_there = |page| found.of(page).contains(PageIs::PRESENT) || in_file(page);
            let all = |piece: &PageRun| (piece.start..piece.end()).all(is_there);
            if !near.iter().all(|piece| found.has_all(*piece) || all(piece)) {
                return false;
            }
            rest = further;
        }
        true
    }

    /// Copies pages to their place; how many it got.
    fn read_to_donate(&self, runs: &[PageRun], place: usize) -> usize {
        match self.reading {
            Reading::Calls if self.space.has_relatives() => {
                self.memory.read_into_shared(runs, &self.donation, place)
            }
            reading => reading.read_into_shared(runs, &self.donation, place),
        }
    }

    fn donate_piecemeal(
        &self,
        tables: &Tables,
        batch: &Batch,
        outcomes: &mut [Outcome; STEP_PAGES],
    ) {
        *outcomes = [Outcome::Unsuitable; STEP_PAGES];
        let mut piece_at = 0;
        for piece in batch.pieces() {
            for (first, pages) in registered_parts(tables, *piece, bits(0, STEP_PAGES)) {
                let at = piece_at + first;
                let len = usize::try_from(pages.run().len).unwrap_or(0);
                let mut done = 0;
                while done < len {
                    let page = [pages.part(done as u64, 1).run()];
                    let place = batch.place + at + done;
                    let got =
                        self.are_there(tables, &page) && self.read_to_donate(&page, place) == 1;
                    let outcome = if got { Outcome::Done } else { Outcome::Gone };
                    mark(outcomes, bits(at + done, 1), outcome);
                    done += 1;
                }
            }
            piece_at += usize::try_from(piece.len).unwrap_or(0);
        }
    }
}
