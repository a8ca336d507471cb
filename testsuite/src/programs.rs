//! Real programs, as installed from the distribution, under `ksmfs exec`.
//!
//! What a test needs is installed by `testsuite/install-programs`. Where it is not, a test says so on the standard
//! error output, past the test runner, and checks nothing; with `CI` set it fails.

use crate::daemon::Daemon;
use crate::wait::until_true;
use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

/// Whether all of `programs` are installed.
///
/// # Panics
/// When one is not, and `CI` is set.
#[must_use]
pub fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().filter(|name| !is_there(name));
    none_missing(&missing.map(ToString::to_string).collect::<Vec<_>>())
}

/// Whether all of these files of installed programs are there.
///
/// # Panics
/// When one is not, and `CI` is set.
#[must_use]
pub fn installed_files(files: &[&Path]) -> bool {
    let missing = files.iter().filter(|file| !file.is_file());
    none_missing(
        &missing
            .map(|file| file.display().to_string())
            .collect::<Vec<_>>(),
    )
}

fn none_missing(missing: &[String]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let word = format!("not installed: {missing:?}; run testsuite/install-programs");
    assert!(env::var_os("CI").is_none(), "{word}");
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    // Not `eprintln!`, which the runner keeps back for tests that pass.
    let _ = writeln!(std::io::stderr(), "{test}: SKIPPED: {word}");
    false
}

fn is_there(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// The program `ksmfs`, as built beside the test.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn ksmfs() -> PathBuf {
    let test = env::current_exe().expect("a test has a program");
    let built = test.ancestors().nth(2).expect("it is in target/*/deps");
    let program = built.join("ksmfs");
    assert!(
        program.is_file(),
        "{} is missing: cargo build --workspace",
        program.display()
    );
    program
}

/// The library that has unmodified programs take part, as built beside the test.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn preload_library() -> PathBuf {
    let test = env::current_exe().expect("a test has a program");
    let library = test.with_file_name("libksm_preload.so");
    assert!(
        library.is_file(),
        "{} is missing: cargo build --workspace",
        library.display()
    );
    library
}

/// `ksmfs exec`: a command that sees `daemon`'s files and whose memory it merges. The command follows as arguments.
#[must_use]
pub fn exec(daemon: &Daemon) -> Command {
    let mut command = Command::new(ksmfs());
    command.args(["exec", "--socket"]).arg(daemon.socket());
    command
}

/// A command that only sees the files.
#[must_use]
pub fn show(daemon: &Daemon) -> Command {
    let mut command = exec(daemon);
    command.arg("--no-preload");
    command
}

/// Runs a command that must succeed; its standard output.
///
/// # Panics
/// When it fails.
pub fn said(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command wrote, to be shown when it failed.
#[must_use]
pub fn both(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    format!("{}\n{out}\n{err}", output.status)
}

/// A process that ends, with SIGTERM and if need be with SIGKILL, when the test does.
#[derive(Debug)]
pub struct Background(pub Child);

impl Background {
    /// Starts a command.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When the system cannot tell.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().expect("own child").is_none()
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Panics
    /// When it does not.
    pub fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        until_true("the program to end", || !self.runs());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        } else if self.runs() {
            self.end();
        }
    }
}
