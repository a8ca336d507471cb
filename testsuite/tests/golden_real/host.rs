//! A host that is this one: a daemon with its mount, and processes that know nothing of it.
//!
//! A write to `max_page_sharing` ends when the batch under way does, as the kernel's waits for the scan mutex. So that
//! is how to wait for the scanning without knowing what it will come to.

use crate::puppet::{Puppet, Stage};
use crate::scenario::Row;
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::page::PageRun;
use ksm_engine::wire::Figures;
use std::time::Duration;
use testsuite::daemon::{Daemon, write_knob};
use testsuite::wait::until_true;

/// A process, by its place among all that ever were.
#[derive(Clone, Copy, Debug)]
pub struct Pid(usize);

/// The host of one scenario.
pub struct Host {
    processes: Vec<Option<Puppet>>,
    stage: Stage,
    daemon: Daemon,
    pub rows: Vec<Row>,
}

impl Host {
    /// A host with the kernel's defaults.
    pub fn bare() -> Self {
        Self::with(Daemon::start(env!("CARGO_BIN_EXE_kit")))
    }

    /// The same where parts of huge pages are treated as ksmd treats them.
    pub fn bare_as_ksmd() -> Self {
        let kit = env!("CARGO_BIN_EXE_kit");
        Self::with(Daemon::start_as(kit, &["huge-pages-as-ksmd"]))
    }

    fn with(daemon: Daemon) -> Self {
        Self {
            processes: Vec::new(),
            stage: Stage::new(),
            daemon,
            rows: Vec::new(),
        }
    }

    /// Writes a knob, and waits until the write is through.
    pub fn write(&mut self, file: KsmFile, value: &str) -> Result<(), WriteError> {
        let written = write_knob(&self.daemon.mount(), file.name(), value);
        written.map_err(|error| {
            let errors = [
                WriteError::Invalid,
                WriteError::Range,
                WriteError::Busy,
                WriteError::NoMemory,
            ];
            let is =
                |known: &WriteError| error.raw_os_error() == Some(known.errno().raw_os_error());
            let known = errors.into_iter().find(is);
            known.unwrap_or_else(|| panic!("{file}: {error}"))
        })
    }

    /// What a file shows, without its newline.
    pub fn read(&mut self, file: KsmFile) -> String {
        let text = self.daemon.read(file.name()).expect("it is mounted");
        text.strip_suffix('\n').expect("one line").to_owned()
    }

    fn add(&mut self, puppet: Puppet) -> Pid {
        self.processes.push(Some(puppet));
        Pid(self.processes.len() - 1)
    }

    fn puppet(&mut self, pid: Pid) -> &mut Puppet {
        self.processes[pid.0].as_mut().expect("the process lives")
    }

    /// Starts a process without pages.
    pub fn process(&mut self) -> Pid {
        let puppet = self.stage.start(&self.daemon.socket());
        self.add(puppet)
    }

    /// Writes one content to pages, which are mapped where they are not.
    pub fn fill(&mut self, pid: Pid, run: PageRun, value: u64) {
        self.puppet(pid).fill(run, value);
    }

    /// Has the kernel put huge pages where pages are written already.
    pub fn make_huge(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).make_huge(run);
    }

    /// Whether a page is part of a huge page.
    pub fn is_huge(&mut self, pid: Pid, page: u64) -> bool {
        self.puppet(pid).is_huge(page)
    }

    /// Reads pages that nobody has written to.
    pub fn touch(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).touch(run);
    }

    /// `madvise(MERGEABLE)`
    pub fn advise(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).advise(run);
    }

    /// `madvise(UNMERGEABLE)`
    pub fn unadvise(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).unadvise(run);
    }

    /// `madvise(DONTNEED)`
    pub fn discard(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).discard(run);
    }

    /// `munmap`
    pub fn unmap(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).unmap(run);
    }

    /// `mmap` of new memory over the old.
    pub fn map_anew(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).map_anew(run);
    }

    /// `vmsplice` of pages into a pipe.
    pub fn splice(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).splice(run);
    }

    /// The pipe is read.
    pub fn drain(&mut self, pid: Pid, run: PageRun) {
        self.puppet(pid).drain(run);
    }

    /// The process forks.
    pub fn fork(&mut self, pid: Pid) -> Pid {
        let parent = self.processes[pid.0].as_mut().expect("the process lives");
        let child = parent.fork(&self.stage);
        self.add(child)
    }

    /// `mremap` to a place where nothing is.
    pub fn move_pages(&mut self, pid: Pid, from: PageRun, to: PageRun) {
        self.puppet(pid).move_pages(from, to);
    }

    /// What a merged page is mapped to.
    pub fn frame(&mut self, pid: Pid, page: u64) -> Option<u64> {
        self.puppet(pid).frame(page)
    }

    /// What a page is mapped to, merged or not.
    pub fn any_frame(&mut self, pid: Pid, page: u64) -> u64 {
        self.puppet(pid).any_frame(page)
    }

    /// What `ksm_stat` shows of a process.
    pub fn figures(&mut self, pid: Pid) -> Figures {
        self.puppet(pid).figures()
    }

    /// The process ends, having read what it wrote.
    pub fn exit(&mut self, pid: Pid) {
        let mut puppet = self.processes[pid.0].take().expect("the process lives");
        puppet.verify();
        puppet.exit();
    }

    /// Time passes by itself.
    pub fn pause(&mut self) {}

    /// Gives what must not happen that much time to happen.
    pub fn wait(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Lets the scanning go on by itself until `count` full scans are through.
    pub fn wait_scans(&mut self, count: u64) {
        until_true("full scans", || self.number(KsmFile::FullScans) >= count);
    }

    /// Waits until no batch is under way.
    pub fn settle(&mut self) {
        let limit = self.read(KsmFile::MaxPageSharing);
        self.set(KsmFile::MaxPageSharing, &limit);
    }

    /// Checks that all processes read what they wrote.
    pub fn verify(&mut self) {
        let living = self.processes.iter_mut().flatten();
        living.for_each(Puppet::verify);
    }
}
