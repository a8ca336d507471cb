//! Owners that watch their own memory with a userfaultfd.

use crate::board::Kind;
use crate::owner::Owner;
use crate::plot::{Plot, draw};
use crate::sys::userfault::{For, Userfault};
use std::ops::Range;
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Duration;
use testsuite::content::PAGE_SIZE;

impl Owner {
    pub(crate) fn watch(&mut self, plot: usize) -> Result<(), String> {
        let run = self.random.stretch(self.plots[plot].len(), 8);
        let what = self.random.one_of(&[For::Missing, For::Writes]);
        self.note(format!("watches {run:?} of plot {plot} for {what:?}"));
        self.plots[plot].check_run(run.clone(), self.app.board)?;
        if matches!(what, For::Missing) {
            // New memory: what was merged and written since stays in a mapping of a file while there may be pins, and
            // there the program's watch ends when it empties the memory (docs/PRELOAD.md).
            self.map_anew(plot, run.clone())?;
        }
        let userfault = Userfault::new().map_err(|error| format!("userfaultfd: {error}"))?;
        let moment = self.app.board.moment();
        let registered = userfault.register(&self.plots[plot].memory, &run, what);
        if self.had("UFFDIO_REGISTER", moment, registered)?.is_none() {
            return self.advise_mergeable(plot, run);
        }
        let watched = match what {
            For::Missing => self.fill_what_is_missing(&userfault, plot, run.clone()),
            For::Writes => self.hold_writers_off(&userfault, plot, run.clone()),
        };
        let memory = &self.plots[plot].memory;
        let left = userfault.unregister(memory, &run);
        watched?;
        left.map_err(|error| format!("UFFDIO_UNREGISTER: {error}"))?;
        self.advise_mergeable(plot, run.clone())?;
        self.pause(5);
        self.plots[plot].check_run(run, self.app.board)
    }

    /// Empties pages, has somebody read one, and fills all of them.
    fn fill_what_is_missing(
        &mut self,
        userfault: &Userfault,
        plot: usize,
        run: Range<usize>,
    ) -> Result<(), String> {
        // Nobody may look before they are filled.
        let emptied = self.plots[plot]
            .memory
            .advise(run.clone(), libc::MADV_DONTNEED);
        emptied.map_err(|error| format!("MADV_DONTNEED: {error}"))?;
        self.plots[plot].contents[run.clone()].fill(0);
        self.pause(5);
        let page = run.start;
        let ids: Vec<u64> = run.clone().map(|_| draw(&mut self.random)).collect();
        let pages: Vec<&'static [u8]> = ids.iter().map(|id| self.content(*id)).collect();
        let memory = &self.plots[plot].memory;
        let read = std::thread::scope(|scope| {
            let reader = spawn(scope, move || {
                let mut bytes = [0; PAGE_SIZE];
                memory.read(page, &mut bytes);
                bytes
            });
            let fault = userfault.wait().map_err(|error| {
                // Lets the reader go.
                let _ = userfault.unregister(memory, &run);
                format!("wait: {error}")
            })?;
            let place = usize::try_from(fault.address).unwrap_or(0);
            let address = memory.address(page);
            let culprit = (!(address..address + PAGE_SIZE).contains(&place))
                .then(|| format!("{place:#x} instead of {address:#x}: {}", fault.culprit()));
            for (page, bytes) in run.clone().zip(&pages) {
                let filled = userfault.fill(memory, page, bytes);
                filled.map_err(|error| format!("UFFDIO_COPY: {error}"))?;
            }
            let read = reader.join().map_err(|_| "a reader panicked".to_owned())?;
            match culprit {
                Some(culprit) => Err(format!("a fault at {culprit}")),
                None => Ok(read),
            }
        })?;
        self.plots[plot].contents[run.clone()].copy_from_slice(&ids);
        if read[..] != *self.content(ids[0]) {
            return Err(format!("page {page} was not what it was filled with"));
        }
        self.app.board.count(Kind::OwnUserfaultMissing);
        self.plots[plot].check_run(run, self.app.board)
    }

    /// Protects pages, has somebody write to one, and lets him.
    fn hold_writers_off(
        &mut self,
        userfault: &Userfault,
        plot: usize,
        run: Range<usize>,
    ) -> Result<(), String> {
        let board = self.app.board;
        // Only pages that are there are protected.
        for page in run.clone() {
            let id = draw(&mut self.random);
            self.write(plot, page, id, Kind::Store)?;
        }
        let Plot { memory, contents } = &mut self.plots[plot];
        let protected = userfault.protect(memory, &run, true);
        protected.map_err(|error| format!("UFFDIO_WRITEPROTECT: {error}"))?;
        let (page, id) = (run.start, draw(&mut self.random));
        let bytes: &'static [u8] = &self.app.pages[usize::try_from(id).unwrap_or(0)];
        let memory = &*memory;
        let before = contents[page];
        std::thread::scope(|scope| {
            let writer = spawn(scope, move || memory.store(page, bytes));
            let waited = userfault.wait();
            let mut seen = [0; PAGE_SIZE];
            memory.read(page, &mut seen);
            let freed = userfault.protect(memory, &run, false);
            writer.join().map_err(|_| "a writer panicked".to_owned())?;
            waited.map_err(|error| format!("wait: {error}"))?;
            freed.map_err(|error| format!("lifting: {error}"))?;
            match testsuite::content::first_wrong_byte(&seen, before) {
                None => Ok(()),
                Some(byte) => Err(format!("page {page} changed at {byte} while protected")),
            }
        })?;
        contents[page] = id;
        board.count(Kind::OwnUserfaultProtect);
        self.plots[plot].check_run(run, board)
    }
}

/// Tries until there is memory for a thread.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl Fn() -> T + Copy + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    loop {
        match Builder::new().spawn_scoped(scope, work) {
            Ok(thread) => return thread,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
