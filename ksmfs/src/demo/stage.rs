//! What the demo plays on: a directory, a daemon, workers. All of it is gone when the stage is dropped.

use super::DemoError;
use ksm_engine::page::PAGE_SIZE;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take to mount.
const START_TIME: Duration = Duration::from_secs(20);

/// A counter that the demo follows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    PagesSharing,
    FullScans,
}

impl Counter {
    fn file(self) -> &'static str {
        match self {
            Self::PagesSharing => "pages_sharing",
            Self::FullScans => "full_scans",
        }
    }
}

/// What each worker holds, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) shared: u64,
    pub(super) own: u64,
}

impl Loaded {
    pub(super) fn total(&self, workers: u32) -> u64 {
        (self.shared + self.own) * u64::from(workers)
    }

    /// Pages that at least become sharing: all but the first copy of the files.
    pub(super) fn mergeable_pages(&self, workers: u32) -> u64 {
        self.shared / PAGE_SIZE as u64 * u64::from(workers - 1)
    }
}

struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    fn answer(&mut self) -> Result<String, DemoError> {
        let mut line = String::new();
        self.from
            .read_line(&mut line)
            .map_err(|e| DemoError::Io("worker's pipe", e))?;
        match line.trim_end().strip_prefix("ok") {
            Some(value) => Ok(value.trim().to_owned()),
            None if line.is_empty() => Err(DemoError::Worker(self.child.id(), "ended".to_owned())),
            None => Err(DemoError::Worker(
                self.child.id(),
                line.trim_end().to_owned(),
            )),
        }
    }
}

pub(super) struct Stage {
    dir: PathBuf,
    program: PathBuf,
    daemon: Child,
    workers: Vec<Worker>,
}

impl Stage {
    /// Makes a directory and mounts ksmfs there.
    pub(super) fn new() -> Result<Self, DemoError> {
        let dir = std::env::temp_dir().join(format!("ksmfs-demo-{}", std::process::id()));
        let io = |what| move |error| DemoError::Io(what, error);
        let program = std::env::current_exe().map_err(io("own program"))?;
        std::fs::create_dir_all(dir.join("ksm")).map_err(io("temporary directory"))?;
        let daemon = Command::new(&program)
            .arg("mount")
            .arg(dir.join("ksm"))
            .arg("--socket")
            .arg(dir.join("socket"))
            .arg("--end-with-parent")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io("starting the daemon"))?;
        let mut stage = Self {
            dir,
            program,
            daemon,
            workers: Vec::new(),
        };
        stage.wait_for_daemon()?;
        Ok(stage)
    }

    fn wait_for_daemon(&mut self) -> Result<(), DemoError> {
        let start = Instant::now();
        while !self.mount().join("run").exists() || !self.dir.join("socket").exists() {
            let ended = self
                .daemon
                .try_wait()
                .map_err(|e| DemoError::Io("the daemon", e))?;
            if ended.is_some() || start.elapsed() > START_TIME {
                let _ = self.daemon.kill();
                let mut said = String::new();
                if let Some(mut pipe) = self.daemon.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut pipe, &mut said);
                }
                return Err(DemoError::Daemon(said.trim().to_owned()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn mount(&self) -> PathBuf {
        self.dir.join("ksm")
    }

    pub(super) fn daemon(&self) -> u32 {
        self.daemon.id()
    }

    pub(super) fn workers(&self) -> Vec<u32> {
        self.workers
            .iter()
            .map(|worker| worker.child.id())
            .collect()
    }

    /// Starts workers and waits until all have loaded their data.
    pub(super) fn start_workers(
        &mut self,
        count: u32,
        files: &[PathBuf],
    ) -> Result<Loaded, DemoError> {
        let io = |what| move |error| DemoError::Io(what, error);
        let list = self.dir.join("files");
        let paths: Vec<_> = files.iter().filter_map(|path| path.to_str()).collect();
        std::fs::write(&list, paths.join("\n")).map_err(io("list of files"))?;
        for seed in 1..=count {
            let mut child = Command::new(&self.program)
                .arg("demo-worker")
                .arg(self.dir.join("socket"))
                .arg(seed.to_string())
                .arg(&list)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(io("starting a worker"))?;
            let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
                return Err(DemoError::Worker(child.id(), "no pipes".to_owned()));
            };
            self.workers.push(Worker {
                child,
                to,
                from: BufReader::new(from),
            });
        }
        let mut loaded = Loaded { shared: 0, own: 0 };
        for worker in &mut self.workers {
            let said = worker.answer()?;
            let mut sizes = said.split(' ').filter_map(|size| size.parse().ok());
            loaded.shared = sizes.next().unwrap_or(0);
            loaded.own = sizes.next().unwrap_or(0);
        }
        Ok(loaded)
    }

    /// Has all workers do something at the same time.
    pub(super) fn ask_all(&mut self, order: &str) -> Result<(), DemoError> {
        for worker in &mut self.workers {
            writeln!(worker.to, "{order}").map_err(|e| DemoError::Io("worker's pipe", e))?;
        }
        for worker in &mut self.workers {
            worker.answer()?;
        }
        Ok(())
    }

    pub(super) fn write(&self, knob: &str, value: &str) -> Result<(), DemoError> {
        std::fs::write(self.mount().join(knob), value).map_err(|e| DemoError::Io("a knob", e))
    }

    pub(super) fn counter(&self, counter: Counter) -> Result<u64, DemoError> {
        let text = read(&self.mount(), counter.file())?;
        Ok(text.trim().parse().unwrap_or(0))
    }

    /// All counters with their values.
    pub(super) fn counters(&self) -> Result<Vec<(&'static str, String)>, DemoError> {
        ksm_engine::knobs::KsmFile::ALL
            .into_iter()
            .filter(|file| !file.is_writable())
            .map(|file| {
                Ok((
                    file.name(),
                    read(&self.mount(), file.name())?.trim().to_owned(),
                ))
            })
            .collect()
    }

    /// Ends everything, and makes sure of it.
    pub(super) fn end(mut self) -> Result<(), DemoError> {
        self.clear();
        if self.dir.exists() {
            let error = std::io::Error::other(format!("{} is still there", self.dir.display()));
            return Err(DemoError::Io("clearing up", error));
        }
        Ok(())
    }

    fn clear(&mut self) {
        for mut worker in self.workers.drain(..) {
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
        if let Ok(pid) = i32::try_from(self.daemon.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
            && matches!(self.daemon.try_wait(), Ok(None))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.daemon.wait();
        }
        let _ = std::fs::remove_file(self.dir.join("files"));
        let _ = std::fs::remove_dir(self.dir.join("ksm"));
        let _ = std::fs::remove_dir(&self.dir);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clear();
    }
}

fn read(mount: &Path, file: &str) -> Result<String, DemoError> {
    std::fs::read_to_string(mount.join(file)).map_err(|e| DemoError::Io("a counter", e))
}
