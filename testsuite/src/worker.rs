//! App processes of a test: they link the client, hold pages whose contents they know, and check every byte.
//!
//! A worker is the kit's program in another process, told what to do line by line. Each line is answered with `ok`
//! and a value, or with `err` and a reason.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What a range of pages is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// The same in every page.
    Same(u64),
    /// Another one in every page, the same in every worker with this seed.
    Each(u64),
    /// Zeros.
    Zero,
}

impl Content {
    fn words(self) -> String {
        match self {
            Self::Same(id) => format!("same {id}"),
            Self::Each(seed) => format!("each {seed}"),
            Self::Zero => "same 0".to_owned(),
        }
    }
}

/// A worker process. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker of user `uid` with `pages` mergeable pages.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(kit: &str, socket: &Path, uid: u32, pages: usize) -> Self {
        Self::with(Command::new(kit), socket, uid, pages)
    }

    /// The same with one that speaks only these versions of the protocol: `FIRST-LAST`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_speaking(
        kit: &str,
        versions: &str,
        socket: &Path,
        uid: u32,
        pages: usize,
    ) -> Self {
        let mut command = Command::new(kit);
        command.env(crate::daemon::VERSIONS, versions);
        Self::with(command, socket, uid, pages)
    }

    fn with(mut command: Command, socket: &Path, uid: u32, pages: usize) -> Self {
        command
            .arg("worker")
            .arg(socket)
            .arg(uid.to_string())
            .arg(pages.to_string());
        let mut worker = Self::spawn(command);
        worker.answer("start");
        worker
    }

    /// Starts a program that answers like a worker; its first answer is still to be heard.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the kit runs");
        let to = child.stdin.take().expect("piped above");
        let from = BufReader::new(child.stdout.take().expect("piped above"));
        Self { child, to, from }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answer(&mut self, what: &str) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the worker's pipe");
        match line
            .trim_end()
            .split_once(' ')
            .unwrap_or((line.trim_end(), ""))
        {
            ("ok", value) => value.to_owned(),
            _ => panic!("worker {}: {what}: {line:?}", self.pid()),
        }
    }

    /// Sends a line without waiting for the answer.
    ///
    /// # Panics
    /// When the worker is gone.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("the worker's pipe");
    }

    /// Takes the answer to a line that was told.
    ///
    /// # Panics
    /// When the worker reports an error or is gone.
    pub fn hear(&mut self) -> String {
        self.answer("told")
    }

    /// Sends a line and takes its answer.
    ///
    /// # Panics
    /// When the worker reports an error or is gone.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer(line)
    }

    /// Sends a line that must be refused; the reason.
    ///
    /// # Panics
    /// When it is not.
    pub fn refused(&mut self, line: &str) -> String {
        self.tell(line);
        let mut answer = String::new();
        self.from.read_line(&mut answer).expect("the worker's pipe");
        match answer.trim_end().split_once(' ') {
            Some(("err", reason)) => reason.to_owned(),
            _ => panic!("worker {}: {line}: {answer:?}", self.pid()),
        }
    }

    /// Fills pages.
    pub fn fill(&mut self, start: usize, count: usize, content: Content) {
        self.ask(&format!("fill {start} {count} {}", content.words()));
    }

    /// Checks every byte of every page.
    pub fn verify(&mut self) {
        self.ask("verify");
    }

    /// Pages that are merged now, from the process' own page tables.
    pub fn merged(&mut self) -> usize {
        self.ask("merged").parse().expect("a number")
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Kills the process and waits for its end.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
