//! A host that is a model: the engine, and processes that are numbers in maps.
//!
//! Time passes when a scenario says so. Scenarios that look further than at files and processes do so through `world`.

use crate::scenario::Row;
use ksm_engine::engine::Extras;
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::page::{DomainId, PageRun};
use ksm_engine::wire::Figures;
use std::time::Duration;
use testsuite::sim::{Content, Page, Process, World};

/// Time that passes between two steps: less than chains wait to be pruned.
const BETWEEN_STEPS: Duration = Duration::from_millis(10);
/// The longest that scans may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process, by its number.
#[derive(Clone, Copy, Debug)]
pub struct Pid(u32);

/// The host of one scenario.
pub struct Host {
    pub world: World,
    pub rows: Vec<Row>,
}

impl Host {
    /// A host with the kernel's defaults.
    pub fn bare() -> Self {
        Self {
            world: World::new(ksm_engine::store::ARENA_SLOTS),
            rows: Vec::new(),
        }
    }

    /// The same where parts of huge pages are treated as ksmd treats them.
    pub fn bare_as_ksmd() -> Self {
        let mut host = Self::bare();
        host.world.set_extras(Extras {
            huge_pages_as_ksmd: true,
            ..Extras::default()
        });
        host
    }

    /// Writes a knob, and waits until the write is through.
    pub fn write(&mut self, file: KsmFile, value: &str) -> Result<(), WriteError> {
        self.world.write(file, value)?;
        self.world.settle();
        Ok(())
    }

    /// What a file shows, without its newline.
    pub fn read(&mut self, file: KsmFile) -> String {
        let text = self.world.engine().read(file);
        text.strip_suffix('\n').expect("one line").to_owned()
    }

    /// Starts a process without pages.
    pub fn process(&mut self) -> Pid {
        let at = self.world.spawn(DomainId(0));
        self.world.connect(at);
        Pid(self.world.process(at).pid())
    }

    fn place(&mut self, pid: Pid) -> usize {
        self.world.find(pid.0).expect("the process lives")
    }

    /// A process's model.
    pub fn model(&mut self, pid: Pid) -> &mut Process {
        let at = self.place(pid);
        self.world.process(at)
    }

    /// Writes one content to pages, which are mapped where they are not.
    pub fn fill(&mut self, pid: Pid, run: PageRun, value: u64) {
        for page in run.start..run.end() {
            self.model(pid).write(page, Content(value));
        }
    }

    /// Has the kernel put huge pages where pages are written already.
    pub fn make_huge(&mut self, pid: Pid, run: PageRun) {
        (run.start..run.end()).for_each(|page| self.model(pid).make_huge(page));
    }

    /// Whether a page is part of a huge page.
    pub fn is_huge(&mut self, pid: Pid, page: u64) -> bool {
        self.model(pid).is_huge(page)
    }

    /// Reads pages that nobody has written to.
    pub fn touch(&mut self, pid: Pid, run: PageRun) {
        for page in run.start..run.end() {
            self.model(pid).read(page);
        }
    }

    /// `madvise(MERGEABLE)`
    pub fn advise(&mut self, pid: Pid, run: PageRun) {
        self.model(pid).register(run);
        self.world.settle();
    }

    /// `madvise(UNMERGEABLE)`
    pub fn unadvise(&mut self, pid: Pid, run: PageRun) {
        let at = self.place(pid);
        self.world.unregister(at, run);
        self.world.settle();
    }

    /// `madvise(DONTNEED)`
    pub fn discard(&mut self, pid: Pid, run: PageRun) {
        self.model(pid).discard(run);
    }

    /// `munmap`
    pub fn unmap(&mut self, pid: Pid, run: PageRun) {
        self.model(pid).unmap(run);
        self.world.settle();
    }

    /// `mmap` of new memory over the old.
    pub fn map_anew(&mut self, pid: Pid, run: PageRun) {
        self.unmap(pid, run);
    }

    /// `vmsplice` of pages into a pipe: nobody can move them.
    pub fn splice(&mut self, pid: Pid, run: PageRun) {
        let at = self.place(pid);
        (run.start..run.end()).for_each(|page| self.world.pin(at, page));
    }

    /// The pipe is read.
    pub fn drain(&mut self, pid: Pid, _run: PageRun) {
        self.model(pid).unpin();
    }

    /// The process forks, and the child's agent connects.
    pub fn fork(&mut self, pid: Pid) -> Pid {
        let at = self.place(pid);
        let child = self.world.fork(at);
        self.world.connect(child);
        self.world.settle();
        Pid(self.world.process(child).pid())
    }

    /// `mremap` to a place where nothing is.
    pub fn move_pages(&mut self, pid: Pid, from: PageRun, to: PageRun) {
        let at = self.place(pid);
        self.world.move_pages(at, from, to.start);
        self.world.settle();
    }

    /// What a merged page is mapped to.
    pub fn frame(&mut self, pid: Pid, page: u64) -> Option<Page> {
        let page = self.model(pid).page(page);
        page.filter(|page| matches!(page, Page::Merged { .. }))
    }

    /// What `ksm_stat` shows of a process.
    pub fn figures(&mut self, pid: Pid) -> Figures {
        let mm = self.model(pid).mm().expect("its agent is connected");
        self.world.engine().figures(mm)
    }

    /// The process ends.
    pub fn exit(&mut self, pid: Pid) {
        let at = self.place(pid);
        self.world.exit(at);
        self.world.settle();
    }

    /// Lets time pass, as it does between a user's steps.
    pub fn pause(&mut self) {
        self.wait(BETWEEN_STEPS);
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        self.world.wait(time);
        self.world.settle();
    }

    /// Lets the scanning go on by itself until `count` full scans are through.
    pub fn wait_scans(&mut self, count: u64) {
        let mut time = Duration::ZERO;
        while self.number(KsmFile::FullScans) < count {
            let step = Duration::from_millis(1);
            self.wait(step);
            time += step;
            assert!(time < PATIENCE, "the scanning does not go on");
        }
    }

    /// Waits until nothing is under way. Zero pages are counted then, as a daemon does before somebody reads a live figure.
    pub fn settle(&mut self) {
        self.world.settle();
        self.world.count_zero_pages();
        self.world.settle();
        self.world.check();
    }

    /// Checks that all processes read what they wrote.
    pub fn verify(&mut self) {
        self.world.check();
    }
}
