//! A host whose scanning is stepped from outside, one full scan at a time.
//!
//! The trick of every measured scenario: the sleep between two batches is an hour and a batch is a million pages, so
//! a full scan happens whenever a different sleep is written.

use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::page::{DomainId, PageRun};
use ksm_engine::wire::Figures;
use std::ops::Range;
use std::time::Duration;
use testsuite::sim::{Content, Process, World};

/// What a scenario shows in each row, in this order.
const COLUMNS: [KsmFile; 11] = [
    KsmFile::FullScans,
    KsmFile::PagesShared,
    KsmFile::PagesSharing,
    KsmFile::PagesUnshared,
    KsmFile::PagesVolatile,
    KsmFile::ZeroPages,
    KsmFile::StableNodeChains,
    KsmFile::StableNodeDups,
    KsmFile::PagesScanned,
    KsmFile::PagesSkipped,
    KsmFile::GeneralProfit,
];
/// Time that passes between two steps: less than chains wait to be pruned.
const BETWEEN_STEPS: Duration = Duration::from_millis(10);
/// First page of the first region of each process.
const FIRST_PAGE: u64 = 0x7000;
/// Pages from one region to the next.
const REGION_PAGES: u64 = 0x1000;

/// A process, by its number.
#[derive(Clone, Copy, Debug)]
pub struct Pid(u32);

/// The host of one scenario.
pub struct Host {
    pub world: World,
    sleep: u32,
    rows: Vec<(String, Vec<String>)>,
}

/// The pages of region number `region` of a process.
pub fn pages(region: u64, range: Range<u64>) -> PageRun {
    let first = FIRST_PAGE + region * REGION_PAGES;
    PageRun::between(first + range.start, first + range.end)
}

impl Host {
    /// A host with the kernel's defaults but for these knobs.
    pub fn new(knobs: &[(KsmFile, &str)]) -> Self {
        let mut host = Self {
            world: World::new(ksm_engine::store::ARENA_SLOTS),
            sleep: 3_600_000,
            rows: Vec::new(),
        };
        host.set(KsmFile::PagesToScan, "1000000");
        host.set(KsmFile::SleepMillisecs, "3600000");
        for (file, value) in knobs {
            host.set(*file, value);
        }
        host
    }

    /// Writes a knob that takes the value.
    pub fn set(&mut self, file: KsmFile, value: &str) {
        self.write(file, value)
            .unwrap_or_else(|error| panic!("{file} refuses {value}: {error}"));
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

    /// Number in a file.
    pub fn number(&mut self, file: KsmFile) -> u64 {
        self.read(file).parse().expect("a number")
    }

    /// Starts a process without pages.
    pub fn process(&mut self) -> Pid {
        let at = self.world.spawn(DomainId(0));
        self.world.connect(at);
        Pid(self.world.process(at).pid())
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

    fn place(&mut self, pid: Pid) -> usize {
        self.world.find(pid.0).expect("the process lives")
    }

    /// A process's model.
    pub fn model(&mut self, pid: Pid) -> &mut Process {
        let at = self.place(pid);
        self.world.process(at)
    }

    /// Writes one content to pages.
    pub fn fill(&mut self, pid: Pid, run: PageRun, value: u64) {
        for page in run.start..run.end() {
            self.model(pid).write(page, Content(value));
        }
    }

    /// Writes different contents to pages.
    pub fn unique(&mut self, pid: Pid, run: PageRun, seed: u64) {
        for (offset, page) in (1..).zip(run.start..run.end()) {
            let place = page % REGION_PAGES + offset;
            self.model(pid).write(page, Content((seed << 32) + place));
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

    /// `munmap`
    pub fn unmap(&mut self, pid: Pid, run: PageRun) {
        self.model(pid).unmap(run);
        self.world.settle();
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

    /// A device gets hold of a page.
    pub fn pin(&mut self, pid: Pid, page: u64) {
        let at = self.place(pid);
        self.world.pin(at, page);
    }

    /// All devices let go of the process's pages.
    pub fn unpin(&mut self, pid: Pid) {
        self.model(pid).unpin();
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

    /// Wakes the scanning for one batch.
    pub fn wake(&mut self) {
        self.sleep = if self.sleep == 3_600_000 {
            3_600_001
        } else {
            3_600_000
        };
        self.world.wait(BETWEEN_STEPS);
        let sleep = self.sleep.to_string();
        self.set(KsmFile::SleepMillisecs, &sleep);
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
            assert_eq!(
                self.number(KsmFile::FullScans),
                before + 1,
                "one wake, one scan"
            );
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
        self.count_zero_pages();
        self.world.check();
        let row = COLUMNS.map(|file| self.read(file)).to_vec();
        self.rows.push((label.to_owned(), row));
    }

    /// What a daemon does before somebody reads a live figure.
    pub fn count_zero_pages(&mut self) {
        self.world.count_zero_pages();
        self.world.settle();
    }

    /// The rows recorded so far: label and counters.
    pub fn rows(&mut self) -> &mut Vec<(String, Vec<String>)> {
        &mut self.rows
    }

    /// Compares all recorded rows with what was measured: one row a line, the label first, then the columns full_scans,
    /// pages_shared, pages_sharing, pages_unshared, pages_volatile, ksm_zero_pages, stable_node_chains,
    /// stable_node_dups, pages_scanned, pages_skipped, general_profit.
    pub fn expect(self, measured: &str) {
        let shown = |label: &str, row: &[String]| {
            let row: String = row.iter().map(|number| format!("{number:>9}")).collect();
            format!("{label:26}{row}")
        };
        let expected: Vec<String> = measured
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                let (label, row) = words.split_at(words.len() - COLUMNS.len());
                shown(&label.join(" "), row)
            })
            .collect();
        let recorded: Vec<String> = self
            .rows
            .iter()
            .map(|(label, row)| shown(label, row))
            .collect();
        assert!(
            recorded == expected,
            "\nmeasured on the kernel:\n{}\nhere:\n{}\n",
            expected.join("\n"),
            recorded.join("\n")
        );
    }
}
