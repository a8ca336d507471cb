//! All ways to write to a page. The page is checked before and after.

use crate::app::Diet;
use crate::board::Kind;
use crate::hand::Ask;
use crate::owner::Owner;
use crate::plot::{PATTERNS, draw};
use crate::sys::input;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;
use std::time::Duration;
use testsuite::content::PAGE_SIZE;

const HARMLESS: [Kind; 6] = [
    Kind::Store,
    Kind::StoreSlowly,
    Kind::Read,
    Kind::Recv,
    Kind::FromOutside,
    Kind::MemFile,
];
const WITH_DEVICES: [Kind; 8] = [
    Kind::Store,
    Kind::StoreSlowly,
    Kind::Read,
    Kind::Recv,
    Kind::FromOutside,
    Kind::MemFile,
    Kind::RingPlain,
    Kind::Direct,
];

impl Owner {
    /// Writes to some pages, each in a way of its own; `same` in all of them, if given.
    pub(crate) fn write_run(
        &mut self,
        plot: usize,
        run: Range<usize>,
        same: Option<u64>,
    ) -> Result<(), String> {
        match self.random.below(12) {
            0 => return self.readv(plot, &run),
            1 if self.ring.is_some() => return self.pinned(plot, run),
            2 => return self.compare_from_outside(plot, run.start),
            _ => {}
        }
        let ways: &[Kind] = match self.app.diet {
            Diet::NoDevices => &HARMLESS,
            Diet::All | Diet::Everything => &WITH_DEVICES,
        };
        for page in run {
            let id = same.unwrap_or_else(|| draw(&mut self.random));
            let way = self.random.one_of(ways);
            self.write(plot, page, id, way)?;
        }
        Ok(())
    }

    pub(crate) fn write(
        &mut self,
        plot: usize,
        page: usize,
        id: u64,
        way: Kind,
    ) -> Result<(), String> {
        let board = self.app.board;
        self.plots[plot].check(page, board)?;
        let address = self.plots[plot].memory.address(page);
        self.note(format!("{way:?} {id} to {address:#x}"));
        let moment = board.moment();
        let done = self.put(plot, page, id, way);
        let what = format!("{way:?}");
        match self.had(&what, moment, done)? {
            Some(PAGE_SIZE) => board.count(way),
            Some(part) => return Err(format!("{what}: {part} bytes")),
            // Who knows how far it came.
            None => self.plots[plot].memory.store(page, self.content(id)),
        }
        self.plots[plot].contents[page] = id;
        self.plots[plot].check(page, board)
    }

    /// The bytes of a content.
    pub(crate) fn content(&self, id: u64) -> &'static [u8] {
        &self.app.pages[usize::try_from(id).unwrap_or(0)]
    }

    fn put(&mut self, plot: usize, page: usize, id: u64, way: Kind) -> io::Result<usize> {
        let bytes = self.content(id);
        let memory = &self.plots[plot].memory;
        let address = memory.address(page);
        match way {
            Kind::Read => input::pread(&self.app.plain, id, memory, page),
            Kind::Recv => {
                self.sockets.0.write_all(bytes)?;
                input::recv(&self.sockets.1, memory, page)
            }
            Kind::Direct => {
                let file = self.app.direct.as_ref();
                let file = file.ok_or(io::ErrorKind::NotFound)?;
                input::pread(file, id, memory, page)
            }
            Kind::RingPlain => {
                let ring = self.ring.as_mut().ok_or(io::ErrorKind::NotFound)?;
                ring.read(&self.app.plain, id, memory, page)
            }
            Kind::MemFile => self.write_as_debugger(bytes, address),
            Kind::FromOutside => self.ask(Ask::Write, id, address),
            Kind::StoreSlowly => {
                // Long enough in pieces for somebody to look at a page that is half of each.
                let step = 8 << self.random.below(9);
                for at in (0..PAGE_SIZE).step_by(step) {
                    let memory = &self.plots[plot].memory;
                    memory.store_part(page, at, &bytes[at..at + step]);
                }
                Ok(PAGE_SIZE)
            }
            _ => {
                memory.store(page, bytes);
                Ok(PAGE_SIZE)
            }
        }
    }

    /// Through `/proc/self/mem`.
    pub(crate) fn write_as_debugger(&self, bytes: &[u8], address: usize) -> io::Result<usize> {
        let mut tries = 0;
        loop {
            let written = self.memory.write_at(bytes, address as u64);
            let failed = written.as_ref().err().and_then(io::Error::raw_os_error);
            // Such accesses do not wait for a page that is held for a moment, but fail: docs/SEMANTICS.md.
            if failed != Some(libc::EIO) || tries == 1000 {
                return written;
            }
            tries += 1;
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn ask(&self, what: Ask, id: u64, address: usize) -> io::Result<usize> {
        let moment = self.app.board.moment();
        let mut hand = self.app.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = hand.ask(what, id, address);
        let dead = answer.as_ref().is_err_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
            )
        });
        if dead && self.app.board.limited_since(moment) {
            // Killed for its memory.
            hand.replace().map_err(io::Error::other)?;
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        answer
    }

    fn compare_from_outside(&mut self, plot: usize, page: usize) -> Result<(), String> {
        let (board, id) = (self.app.board, self.plots[plot].contents[page]);
        let address = self.plots[plot].memory.address(page);
        let moment = board.moment();
        let answer = self.ask(Ask::Compare, id, address);
        match self.had("reading from outside", moment, answer)? {
            Some(PAGE_SIZE) => board.count(Kind::ReadFromOutside),
            None => {}
            Some(byte) => {
                return Err(format!(
                    "{address:#x} is wrong at byte {byte}, from outside"
                ));
            }
        }
        Ok(())
    }

    /// One call that fills several pages.
    fn readv(&mut self, plot: usize, run: &Range<usize>) -> Result<(), String> {
        let board = self.app.board;
        // Every other page.
        let pages: Vec<usize> = run.clone().step_by(2).collect();
        let most = PATTERNS - pages.len() as u64;
        let first = self.random.next() % most;
        self.note(format!("readv from {first} to {pages:?} of plot {plot}"));
        self.plots[plot].check_run(run.clone(), board)?;
        let moment = board.moment();
        let memory = &self.plots[plot].memory;
        let got = input::readv(&self.app.plain, first, memory, &pages);
        let got = self.had("readv", moment, got)?;
        if got.is_some_and(|bytes| bytes != pages.len() * PAGE_SIZE) {
            return Err(format!("readv: {got:?} bytes"));
        }
        for (page, id) in pages.into_iter().zip(first..) {
            if got.is_none() {
                self.plots[plot].memory.store(page, self.content(id));
            }
            self.plots[plot].contents[page] = id;
        }
        board.count(Kind::Readv);
        self.plots[plot].check_run(run.clone(), board)
    }

    /// Pins pages for a ring, has them written to by others and by the ring, and lets go of them.
    fn pinned(&mut self, plot: usize, run: Range<usize>) -> Result<(), String> {
        let board = self.app.board;
        let Some(mut ring) = self.ring.take() else {
            return Ok(());
        };
        self.note(format!("pins {run:?} of plot {plot}"));
        let moment = board.moment();
        let pinned = ring.pin(&self.plots[plot].memory, &run);
        let mut result = self.had("pin", moment, pinned).map(|done| done.is_some());
        if let Ok(true) = result {
            result = self.use_pinned(&mut ring, plot, run).map(|()| true);
            ring.unpin().map_err(|error| format!("unpin: {error}"))?;
        }
        self.ring = Some(ring);
        result.map(drop)
    }

    fn use_pinned(
        &mut self,
        ring: &mut crate::sys::ring::Ring,
        plot: usize,
        run: Range<usize>,
    ) -> Result<(), String> {
        let board = self.app.board;
        self.plots[plot].check_run(run.clone(), board)?;
        for page in run.clone() {
            self.pause(10);
            let id = draw(&mut self.random);
            if self.random.once_in(3) {
                self.write(plot, page, id, Kind::Store)?;
                continue;
            }
            self.note(format!("ring writes {id} to page {page} of plot {plot}"));
            let moment = board.moment();
            let got = ring.read_pinned(&self.app.plain, id, &self.plots[plot].memory, page);
            match self.had("reading into a pinned page", moment, got)? {
                Some(PAGE_SIZE) => board.count(Kind::RingFixed),
                Some(part) => return Err(format!("pinned: {part} bytes")),
                None => self.plots[plot].memory.store(page, self.content(id)),
            }
            self.plots[plot].contents[page] = id;
            self.plots[plot].check(page, board)?;
        }
        self.plots[plot].check_run(run, board)
    }
}
