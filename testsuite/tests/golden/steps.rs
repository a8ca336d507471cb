//! Steps made of what every host can do.
//!
//! The trick of every measured scenario: the sleep between two batches is an hour and a batch is a million pages, so
//! a full scan happens whenever a different sleep is written.

use crate::host::{Host, Pid};
use crate::scenario::{COLUMNS, REGION_PAGES, Row, compare, pages};
use ksm_engine::knobs::KsmFile;
use ksm_engine::page::PageRun;

const SLEEP: &str = "3600000";
const OTHER_SLEEP: &str = "3600001";

impl Host {
    /// A host with the kernel's defaults but for the pace, and these knobs.
    pub fn new(knobs: &[(KsmFile, &str)]) -> Self {
        Self::bare().prepared(knobs)
    }

    /// The same where parts of huge pages are treated as ksmd treats them.
    pub fn like_ksmd(knobs: &[(KsmFile, &str)]) -> Self {
        Self::bare_as_ksmd().prepared(knobs)
    }

    fn prepared(mut self, knobs: &[(KsmFile, &str)]) -> Self {
        self.set(KsmFile::PagesToScan, "1000000");
        self.set(KsmFile::SleepMillisecs, SLEEP);
        for (file, value) in knobs {
            self.set(*file, value);
        }
        self
    }

    /// Writes a knob that takes the value.
    pub fn set(&mut self, file: KsmFile, value: &str) {
        self.write(file, value)
            .unwrap_or_else(|error| panic!("{file} refuses {value}: {error}"));
    }

    /// Number in a file.
    pub fn number(&mut self, file: KsmFile) -> u64 {
        self.read(file).parse().expect("a number")
    }

    /// Starts a process with pages of one content, and asks for merging.
    pub fn process_of(&mut self, count: u64, value: u64) -> Pid {
        let pid = self.process();
        self.fill(pid, pages(0, 0..count), value);
        self.advise(pid, pages(0, 0..count));
        pid
    }

    /// Starts a process with pages that are all different, and asks for merging.
    pub fn process_of_unique(&mut self, count: u64, seed: u64) -> Pid {
        let pid = self.process();
        self.unique(pid, pages(0, 0..count), seed);
        self.advise(pid, pages(0, 0..count));
        pid
    }

    /// Writes different contents to pages.
    pub fn unique(&mut self, pid: Pid, run: PageRun, seed: u64) {
        for (offset, page) in (1..).zip(run.start..run.end()) {
            let place = page % REGION_PAGES + offset;
            let run = PageRun::between(page, page + 1);
            self.fill(pid, run, (seed << 32) + place);
        }
    }

    /// Wakes the scanning for one batch. Of another sleep only somebody who sleeps takes notice.
    pub fn wake(&mut self) {
        self.settle();
        let other = if self.read(KsmFile::SleepMillisecs) == SLEEP {
            OTHER_SLEEP
        } else {
            SLEEP
        };
        self.pause();
        self.set(KsmFile::SleepMillisecs, other);
        self.settle();
    }

    /// Starts the scanning, which does one full scan at once.
    pub fn start(&mut self) {
        self.set(KsmFile::Run, "1");
        self.record("scan");
    }

    /// Does full scans, and records each.
    pub fn steps(&mut self, count: u32) {
        self.steps_called(count, "scan");
    }

    /// Does full scans, and records each under this label.
    pub fn steps_called(&mut self, count: u32, label: &str) {
        for _ in 0..count {
            let before = self.number(KsmFile::FullScans);
            self.wake();
            let after = self.number(KsmFile::FullScans);
            assert_eq!(after, before + 1, "one wake, one scan");
            self.record(label);
        }
    }

    /// Does a batch, and records it.
    pub fn wake_called(&mut self, label: &str) {
        self.wake();
        self.record(label);
    }

    /// Records all counters.
    pub fn record(&mut self, label: &str) {
        self.settle();
        let row = COLUMNS.map(|file| self.read(file)).to_vec();
        self.rows.push((label.to_owned(), row));
    }

    /// The rows recorded so far: label and counters.
    pub fn rows(&mut self) -> &mut Vec<Row> {
        &mut self.rows
    }

    /// Compares all recorded rows with what was measured, as [`compare`] has it, and all pages with what was written.
    pub fn expect(mut self, measured: &str) {
        compare(&self.rows, measured);
        self.verify();
    }
}
