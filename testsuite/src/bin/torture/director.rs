//! What comes from outside: starts the apps, stops and kills them, turns knobs, limits memory, and says how it was.

use crate::app::{board_in, patterns_in};
use crate::board::{self, Board, Kind};
use crate::knobs::Knobs;
use crate::plot::PATTERNS;
use crate::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testsuite::cgroup::MemoryGroup;
use testsuite::content;

const APPS: u64 = 3;
/// How much longer than asked it may take until each kind of action has happened, and until all have ended.
const PATIENCE: Duration = Duration::from_secs(180);

struct App {
    number: u64,
    process: Child,
    /// When it was started.
    moment: u64,
}

struct Director {
    board: &'static Board,
    directory: PathBuf,
    program: PathBuf,
    knobs: Knobs,
    group: MemoryGroup,
    random: Random,
    apps: Vec<App>,
    killed_for_memory: u64,
}

/// Lets everything happen for so many seconds, and until each kind of action has happened.
pub(crate) fn run(seconds: u64, seed: u64) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    // Next to the program: unlike /tmp on some machines, a file system on a disk, which direct I/O needs.
    let beside = program.parent().unwrap_or(Path::new("."));
    let directory = tempfile::Builder::new()
        .prefix("torture")
        .tempdir_in(beside);
    let directory = directory.map_err(|error| format!("a directory: {error}"))?;
    write_files(directory.path()).map_err(|error| format!("files: {error}"))?;
    let group = MemoryGroup::create("torture").map_err(|error| format!("memory group: {error}"))?;
    let mut director = Director {
        board: Board::open(&board_in(directory.path()))?,
        directory: directory.path().to_owned(),
        program,
        knobs: Knobs::of_environment()?,
        group,
        random: Random::new(seed),
        apps: Vec::new(),
        killed_for_memory: 0,
    };
    println!("seed {seed}, {seconds} s");
    let result = director.direct(Duration::from_secs(seconds));
    if result.is_err() {
        for app in &mut director.apps {
            let _ = app.process.kill();
            let _ = app.process.wait();
        }
    }
    board::print(director.board);
    println!("{:>12} apps killed for memory", director.killed_for_memory);
    result
}

fn write_files(directory: &Path) -> std::io::Result<()> {
    File::create(board_in(directory))?;
    let mut patterns = File::create(patterns_in(directory))?;
    for id in 0..PATTERNS {
        patterns.write_all(&content::page(id))?;
    }
    patterns.sync_all()
}

impl Director {
    fn direct(&mut self, time: Duration) -> Result<(), String> {
        for number in 0..APPS {
            let app = self.start(number)?;
            self.apps.push(app);
        }
        self.knobs.write("run", "1", &[])?;
        let start = Instant::now();
        loop {
            self.look_after_apps()?;
            self.act()?;
            let missing = self.missing();
            if start.elapsed() >= time && missing.is_empty() {
                break;
            }
            if start.elapsed() >= time + PATIENCE {
                return Err(format!("never happened: {missing:?}"));
            }
            self.pause(40);
        }
        self.end()
    }

    fn missing(&self) -> Vec<Kind> {
        let all = Kind::all().iter().copied();
        all.filter(|kind| self.board.counted(*kind) == 0).collect()
    }

    fn pause(&mut self, most: usize) {
        let micros = self.random.below(most * 1000);
        std::thread::sleep(Duration::from_micros(micros as u64));
    }

    fn start(&mut self, number: u64) -> Result<App, String> {
        let moment = self.board.moment();
        let process = Command::new(&self.program)
            .arg("app")
            .args([number.to_string(), self.random.next().to_string()])
            .arg(&self.directory)
            .arg("first")
            .stdin(Stdio::piped())
            .spawn();
        let mut process = process.map_err(|error| format!("an app: {error}"))?;
        let taken = self.group.take(process.id());
        taken.map_err(|error| format!("moving an app: {error}"))?;
        let go = process
            .stdin
            .take()
            .map(|mut input| input.write_all(b"go\n"));
        match go {
            Some(Ok(())) => {}
            _ => return Err("an app does not listen".to_owned()),
        }
        Ok(App {
            number,
            process,
            moment,
        })
    }

    /// An app may end before the end only for want of memory.
    fn look_after_apps(&mut self) -> Result<(), String> {
        for at in 0..self.apps.len() {
            let app = &mut self.apps[at];
            let ended = app.process.try_wait();
            let Some(status) = ended.map_err(|error| format!("waiting: {error}"))? else {
                continue;
            };
            if status.signal() != Some(libc::SIGKILL) || !self.board.limited_since(app.moment) {
                return Err(format!("app {} ended: {status}", app.number));
            }
            self.killed_for_memory += 1;
            let number = app.number;
            self.apps[at] = self.start(number)?;
        }
        Ok(())
    }

    fn act(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..45 => {
                if self.knobs.turn(&mut self.random)? {
                    self.board.count(Kind::Knob);
                }
            }
            45..65 => self.stop_one()?,
            65..70 => self.unmerge_all()?,
            70..80 => {
                if self.group.reclaim().is_ok() {
                    self.board.count(Kind::Reclaim);
                }
            }
            80..83 => self.limit_memory()?,
            83 | 84 => self.kill_one()?,
            85..90 => {
                // Has the kernel move pages to other frames.
                let compacted = std::fs::write("/proc/sys/vm/compact_memory", "1");
                compacted.map_err(|error| format!("compact_memory: {error}"))?;
                self.board.count(Kind::Compact);
            }
            _ => {
                if self.knobs.number("pages_sharing").is_some_and(|n| n > 0) {
                    self.board.count(Kind::Merged);
                }
            }
        }
        Ok(())
    }

    fn unmerge_all(&mut self) -> Result<(), String> {
        let moment = self.board.moment();
        let board = self.board;
        if self.knobs.unmerge_all(|| board.limited_since(moment))? {
            self.board.count(Kind::UnmergeAll);
        }
        Ok(())
    }

    fn signal(&self, at: usize, signal: Signal) -> Result<(), String> {
        let pid = Pid::from_child(&self.apps[at].process);
        kill_process(pid, signal).map_err(|error| format!("{signal:?}: {error}"))
    }

    /// Stops an app, and turns a knob or unmerges all while it stands.
    fn stop_one(&mut self) -> Result<(), String> {
        let at = self.random.below(self.apps.len());
        self.signal(at, Signal::STOP)?;
        self.pause(50);
        let acted = match self.random.below(6) {
            0 => self.unmerge_all(),
            1 | 2 => self.knobs.turn(&mut self.random).map(drop),
            _ => Ok(()),
        };
        self.signal(at, Signal::CONT)?;
        self.board.count(Kind::Stop);
        acted
    }

    fn kill_one(&mut self) -> Result<(), String> {
        let at = self.random.below(self.apps.len());
        let app = &mut self.apps[at];
        app.process
            .kill()
            .and_then(|()| app.process.wait())
            .map_err(|error| format!("killing: {error}"))?;
        let number = app.number;
        self.apps[at] = self.start(number)?;
        self.board.count(Kind::AppKilled);
        Ok(())
    }

    /// Leaves little room for a moment.
    fn limit_memory(&mut self) -> Result<(), String> {
        let room = (1 + self.random.below(16) as u64) << 18;
        let usage = self.group.usage();
        let usage = usage.map_err(|error| format!("usage: {error}"))?;
        self.board.begin_or_end_limit();
        let limited = self.group.limit(usage + room);
        self.pause(200);
        let acted = match self.random.below(3) {
            0 => self.unmerge_all(),
            _ => Ok(()),
        };
        let freed = self.group.limit(1 << 40);
        self.board.begin_or_end_limit();
        freed.map_err(|error| format!("no limit: {error}"))?;
        if limited.is_ok() {
            self.board.count(Kind::MemoryLimit);
        }
        acted
    }

    /// Has all check everything once more and end.
    fn end(&mut self) -> Result<(), String> {
        self.board.end();
        let start = Instant::now();
        for app in &mut self.apps {
            loop {
                let ended = app.process.try_wait();
                match ended.map_err(|error| format!("waiting: {error}"))? {
                    Some(status) if status.success() => break,
                    Some(status)
                        if status.signal() == Some(libc::SIGKILL)
                            && self.board.limited_since(app.moment) =>
                    {
                        self.killed_for_memory += 1;
                        break;
                    }
                    Some(status) => return Err(format!("app {} ended: {status}", app.number)),
                    None if start.elapsed() > PATIENCE => {
                        let threads = threads_of(app.process.id());
                        return Err(format!("app {} does not end:\n{threads}", app.number));
                    }
                    None => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
        Ok(())
    }
}

/// What the threads of a process wait for.
fn threads_of(process: u32) -> String {
    let tasks = procfs::process::Process::new(i32::try_from(process).unwrap_or(0))
        .and_then(|process| process.tasks());
    let Ok(tasks) = tasks else {
        return String::new();
    };
    let lines = tasks.flatten().map(|task| {
        let of = |file: &str| {
            let path = format!("/proc/{process}/task/{}/{file}", task.tid);
            std::fs::read_to_string(path).unwrap_or_default()
        };
        format!("{} {}\n{}", task.tid, of("comm").trim_end(), of("stack"))
    });
    lines.collect()
}
