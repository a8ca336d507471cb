//! What the tests stand on: a mounted daemon in a directory of its own, a child process that is cleaned up, and
//! waiting for a condition.
#![allow(dead_code, reason = "every test program uses a part of it")]

pub mod agent;

use ksmfs::{Options, Running};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Waits until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes in a thread of its own, and returns once the write waits in the kernel.
pub fn write_and_wait(mut file: File, value: &'static [u8]) -> JoinHandle<io::Result<usize>> {
    let (tell, told) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        // One write, because `write_all` tries again after EINTR.
        file.write(value)
    });
    let thread = told.recv().unwrap().as_raw_nonzero();
    let call = format!("{} ", libc::SYS_write);
    wait_for("the write to wait", || {
        // Says "running" instead of a number while the thread does not wait.
        let now = fs::read_to_string(format!("/proc/self/task/{thread}/syscall"));
        writer.is_finished() || now.is_ok_and(|now| now.starts_with(&call))
    });
    assert!(!writer.is_finished(), "the write did not wait");
    writer
}

/// The errno of a failed call.
pub fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

/// A scratch directory that other users may enter, with a mount point in it.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount: run them as root"
        );
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let scratch = Self { dir };
        fs::create_dir(scratch.mountpoint()).unwrap();
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.path("m")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("s")
    }

    pub fn options(&self) -> Options {
        Options::new(self.mountpoint(), self.socket())
    }

    pub fn is_mounted(&self) -> bool {
        ksmfs::mountpoint::our_mounts().contains(&self.mountpoint())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failed test must not leave a mount: the directory could not be removed.
        if let Some(device) = ksmfs::mountpoint::device_at(&self.mountpoint()) {
            let _ = ksmfs::mountpoint::detach(&self.mountpoint(), &device);
        }
    }
}

/// A daemon in this process.
pub struct Mounted {
    // Stopped before the directory goes.
    pub running: Running,
    pub scratch: Scratch,
}

impl Mounted {
    pub fn new() -> Self {
        Self::with(|options| options)
    }

    pub fn with(change: impl FnOnce(Options) -> Options) -> Self {
        let scratch = Scratch::new();
        let running = ksmfs::mount(&change(scratch.options())).unwrap();
        Self { running, scratch }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.mountpoint().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    pub fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.file(name), value)
    }

    pub fn number(&self, name: &str) -> i64 {
        self.read(name).trim_end().parse().unwrap()
    }
}

/// A daemon as a process of its own.
pub struct Daemon {
    pub child: Child,
}

impl Daemon {
    /// Starts `ksmfs mount` and waits until it serves.
    pub fn start(scratch: &Scratch) -> Self {
        let mut daemon = Self::spawn(scratch, &scratch.mountpoint());
        let run = scratch.mountpoint().join("run");
        wait_for("the daemon to serve", || {
            assert_eq!(
                daemon.child.try_wait().unwrap(),
                None,
                "the daemon ended early"
            );
            // A dead mount under it answers nothing.
            run.exists() && is_live(&scratch.socket())
        });
        daemon
    }

    pub fn spawn(scratch: &Scratch, directory: &Path) -> Self {
        let child = Command::new(program())
            .arg("mount")
            .arg(directory)
            .arg("--socket")
            .arg(scratch.socket())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops all of its threads, and returns when they stand still.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_for("all threads to stop", || {
            fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
                stat.rsplit_once(") ").unwrap().1.starts_with('T')
            })
        });
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the daemon to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody listens at a socket path.
pub fn is_live(path: &Path) -> bool {
    connect(path).is_ok()
}

/// A connection to a daemon.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The program under test.
pub fn program() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("ksmfs").to_path_buf()
}
