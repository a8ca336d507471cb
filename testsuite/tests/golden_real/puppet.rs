//! A process that does to its memory what it is told: `puppet.c`, with the library preloaded.

use ksm_engine::page::{PAGE_SIZE, PageRun};
use ksm_engine::wire::Figures;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use testsuite::programs::{Background, preload_library};
use testsuite::wait::{until, until_true};

const MADV_DONTNEED: u64 = 4;
const MADV_MERGEABLE: u64 = 12;
const MADV_UNMERGEABLE: u64 = 13;

/// In an entry of `/proc/PID/pagemap`: it is a page of a file, as merged ones are.
const IN_FILE: u64 = 1 << 61;
/// The number of its frame.
const PFN: u64 = (1 << 55) - 1;

/// Where puppets report.
#[derive(Debug)]
pub struct Stage {
    listener: UnixListener,
    directory: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("socket")).expect("a socket");
        listener.set_nonblocking(true).expect("a socket can");
        Self {
            listener,
            directory,
        }
    }

    /// Starts a process that merges by way of the daemon at `socket`.
    pub fn start(&self, socket: &Path) -> Puppet {
        let mut command = Command::new(program());
        command
            .arg(self.directory.path().join("socket"))
            .env("LD_PRELOAD", preload_library())
            .env("KSMFS_SOCKET", socket);
        let child = Background::start(&mut command);
        Puppet {
            _child: Some(child),
            ..self.next()
        }
    }

    fn next(&self) -> Puppet {
        let (stream, _) = until("a process to report", || self.listener.accept().ok());
        stream.set_nonblocking(false).expect("a socket can");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).expect("its connection");
        let pid = line.trim_end().parse().ok().and_then(Pid::from_raw);
        let pid = pid.unwrap_or_else(|| panic!("no process id: {line:?}"));
        Puppet {
            pid,
            end: pidfd_open(pid, PidfdFlags::empty()).expect("it lives"),
            stream,
            pages: BTreeMap::new(),
            _child: None,
        }
    }
}

/// A process, and what is in its memory.
#[derive(Debug)]
pub struct Puppet {
    pid: Pid,
    /// Becomes readable when the process has ended.
    end: OwnedFd,
    stream: BufReader<UnixStream>,
    /// The pages that are mapped, and the number that each of their words was set to.
    pages: BTreeMap<u64, u64>,
    /// Ends and reaps it. One that was forked by another one ends because its connection does.
    _child: Option<Background>,
}

impl Puppet {
    fn tell(&mut self, verb: &str, run: PageRun, more: [u64; 2]) {
        let PageRun { start, len } = run;
        let [first, step] = more;
        let order = format!("{verb} {start:x} {len:x} {first:x} {step:x}\n");
        let stream = self.stream.get_mut();
        stream.write_all(order.as_bytes()).expect("its connection");
    }

    fn ask(&mut self, verb: &str, run: PageRun, argument: u64) -> String {
        self.tell(verb, run, [argument, 0]);
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("its connection");
        let value = line.trim_end().strip_prefix("ok");
        let value = value.unwrap_or_else(|| panic!("{verb} {run:?}: {line:?}"));
        value.to_owned()
    }

    /// Maps what of `run` is not mapped.
    fn map(&mut self, run: PageRun) {
        let mut at = run.start;
        while at < run.end() {
            let mapped = |page: &u64| self.pages.contains_key(page);
            let start = (at..run.end()).find(|page| !mapped(page));
            let Some(start) = start else { return };
            at = (start..run.end()).find(mapped).unwrap_or(run.end());
            let hole = PageRun::between(start, at);
            self.ask("map", hole, 0);
            self.hold(hole, 0);
        }
    }

    fn hold(&mut self, run: PageRun, value: u64) {
        self.pages
            .extend((run.start..run.end()).map(|page| (page, value)));
    }

    pub fn fill(&mut self, run: PageRun, value: u64) {
        self.map(run);
        self.ask("fill", run, value);
        self.hold(run, value);
    }

    pub fn touch(&mut self, run: PageRun) {
        self.map(run);
        self.ask("touch", run, 0);
    }

    /// Fails where the kernel has no memory in pieces of that size.
    pub fn make_huge(&mut self, run: PageRun) {
        self.ask("collapse", run, 0);
    }

    /// What `smaps` says of the mapping.
    pub fn is_huge(&mut self, page: u64) -> bool {
        let pid = self.pid.as_raw_pid();
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it lives");
        let address = format!("{:08x}-", page * PAGE_SIZE as u64);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&address));
        let huge = lines.find_map(|line| line.strip_prefix("AnonHugePages:"));
        huge.expect("a mapping begins there").trim() != "0 kB"
    }

    pub fn advise(&mut self, run: PageRun) {
        self.map(run);
        self.ask("advise", run, MADV_MERGEABLE);
    }

    pub fn unadvise(&mut self, run: PageRun) {
        self.ask("advise", run, MADV_UNMERGEABLE);
    }

    pub fn discard(&mut self, run: PageRun) {
        self.ask("advise", run, MADV_DONTNEED);
        self.hold(run, 0);
    }

    pub fn map_anew(&mut self, run: PageRun) {
        self.ask("remap", run, 0);
        self.hold(run, 0);
    }

    pub fn unmap(&mut self, run: PageRun) {
        self.ask("unmap", run, 0);
        self.pages.retain(|page, _| !run.contains(*page));
    }

    pub fn move_pages(&mut self, from: PageRun, to: PageRun) {
        self.ask("move", from, to.start);
        for (from, to) in (from.start..from.end()).zip(to.start..) {
            let value = self.pages.remove(&from).expect("it is mapped");
            self.pages.insert(to, value);
        }
    }

    /// Puts pages into a pipe of its own.
    pub fn splice(&mut self, run: PageRun) {
        self.ask("splice", run, 0);
    }

    /// Reads them from it.
    pub fn drain(&mut self, run: PageRun) {
        self.ask("drain", run, 0);
    }

    pub fn fork(&mut self, stage: &Stage) -> Self {
        self.ask("fork", PageRun::between(0, 0), 0);
        Self {
            pages: self.pages.clone(),
            ..stage.next()
        }
    }

    /// The frame that a merged page is mapped to.
    pub fn frame(&mut self, page: u64) -> Option<u64> {
        let entry = self.entry(page);
        (entry & IN_FILE != 0).then_some(entry & PFN)
    }

    /// The frame that a page is mapped to, merged or not.
    pub fn any_frame(&mut self, page: u64) -> u64 {
        self.entry(page) & PFN
    }

    /// What `/proc/PID/pagemap` has of a page.
    fn entry(&mut self, page: u64) -> u64 {
        // What was mapped since nobody looked is not there yet.
        self.touch(PageRun::between(page, page + 1));
        let pid = self.pid.as_raw_pid();
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("it lives");
        let mut entry = [0; size_of::<u64>()];
        let at = page * entry.len() as u64;
        pagemap.read_exact_at(&mut entry, at).expect("a page");
        u64::from_ne_bytes(entry)
    }

    /// What `ksm_stat` says.
    pub fn figures(&mut self) -> Figures {
        let text = self.ask("figures", PageRun::between(0, 0), 0);
        let mut words = text.split_whitespace();
        let mut number = |name| {
            let value = words.find(|word| *word == name).and(words.next());
            value.unwrap_or_else(|| panic!("{name} is not in {text:?}"))
        };
        Figures {
            rmap_items: number("ksm_rmap_items").parse().expect("a number"),
            zero_pages: number("ksm_zero_pages").parse().expect("a number"),
            merging_pages: number("ksm_merging_pages").parse().expect("a number"),
            profit: number("ksm_process_profit").parse().expect("a number"),
        }
    }

    /// Compares every byte with what was written.
    pub fn verify(&mut self) {
        let mut pages = self.pages.clone().into_iter().peekable();
        while let Some((start, value)) = pages.next() {
            let mut end = start + 1;
            while pages.next_if_eq(&(end, value)).is_some() {
                end += 1;
            }
            self.ask("check", PageRun::between(start, end), value);
        }
    }

    /// Ends it, and waits until it is gone.
    pub fn exit(mut self) {
        self.tell("exit", PageRun::between(0, 0), [0, 0]);
        let end = &self.end;
        until_true("the process to end", || {
            let mut fds = [PollFd::new(end, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        });
    }
}

/// The program, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden_real/puppet.c");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let fresh = tempfile::NamedTempFile::new_in(directory).expect("a file");
        let fresh = fresh.into_temp_path();
        let done = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([fresh.as_os_str(), source.as_ref()])
            .status();
        assert!(done.expect("a C compiler").success(), "{source}");
        let program = directory.join("puppet");
        // Another run of the tests may be using the one that is there.
        fresh.persist(&program).expect("the same directory");
        program
    })
}

const _: () = assert!(PAGE_SIZE == 4096, "as the program has it");
