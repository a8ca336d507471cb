//! A ksmfs daemon of a test's own: its mount, its socket, its process.

use crate::wait::until_true;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The environment variable that restricts a daemon or worker to versions of the protocol.
pub const VERSIONS: &str = "KIT_VERSIONS";

/// A running daemon. Dropping it unmounts and ends it.
#[derive(Debug)]
pub struct Daemon {
    kit: PathBuf,
    options: Vec<String>,
    /// The versions of the protocol that it speaks, if not all.
    versions: Option<String>,
    dir: TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Mounts on a fresh directory. `kit` is the test kit's program (`env!("CARGO_BIN_EXE_kit")`).
    ///
    /// # Panics
    /// When the daemon does not come up.
    #[must_use]
    pub fn start(kit: &str) -> Self {
        Self::new(kit, &[], None)
    }

    /// The same with a policy of domains.
    ///
    /// # Panics
    /// When the daemon does not come up.
    #[must_use]
    pub fn start_with_policy(kit: &str, policy: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), policy).expect("own file");
        Self::start_as(kit, &[&format!("policy={}", file.path().display())])
    }

    /// The same with words that the kit knows more of.
    ///
    /// # Panics
    /// When the daemon does not come up.
    #[must_use]
    pub fn start_as(kit: &str, options: &[&str]) -> Self {
        Self::new(kit, options, None)
    }

    /// The same with one that speaks only these versions of the protocol: `FIRST-LAST`.
    ///
    /// # Panics
    /// When the daemon does not come up.
    #[must_use]
    pub fn start_speaking(kit: &str, versions: &str) -> Self {
        Self::new(kit, &[], Some(versions.to_owned()))
    }

    /// Has the next daemon speak these versions.
    pub fn speak(&mut self, versions: &str) {
        self.versions = Some(versions.to_owned());
    }

    fn new(kit: &str, options: &[&str], versions: Option<String>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Processes of other users must reach the socket and the mount.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode).expect("own directory");
        std::fs::create_dir(dir.path().join("ksm")).expect("own directory");
        let mut daemon = Self {
            kit: kit.into(),
            options: options.iter().map(ToString::to_string).collect(),
            versions,
            dir,
            child: None,
        };
        daemon.restart();
        daemon
    }

    /// Starts the daemon again, after [`Daemon::kill`].
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the daemon is running");
        let child = Command::new(&self.kit)
            .arg("daemon")
            .arg(self.mount())
            .arg(self.socket())
            .args(&self.options)
            .envs(self.versions.as_ref().map(|versions| (VERSIONS, versions)))
            .stdin(Stdio::null())
            .spawn()
            .expect("the kit runs");
        self.child = Some(child);
        until_true("the daemon to mount and listen", || {
            let child = self.child.as_mut().expect("started above");
            let ended = child.try_wait().expect("own child");
            assert!(ended.is_none(), "the daemon ended: {ended:?}");
            self.read("run").is_ok()
                && std::os::unix::fs::FileTypeExt::is_socket(
                    &match std::fs::metadata(self.socket()) {
                        Ok(metadata) => metadata.file_type(),
                        Err(_) => return false,
                    },
                )
        });
    }

    /// Ends the daemon with SIGKILL, leaving a dead mount and a stale socket.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().expect("own child");
        child.wait().expect("own child");
    }

    /// Process id of the daemon.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// The directory with the knobs.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("ksm")
    }

    /// The socket for apps.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The text of a knob or counter.
    ///
    /// # Errors
    /// As reading the file.
    pub fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.mount().join(file))
    }

    /// The number in a knob or counter.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn number(&self, file: &str) -> i64 {
        let text = self
            .read(file)
            .unwrap_or_else(|error| panic!("reading {file}: {error}"));
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("{file} is no number: {text:?}"))
    }

    /// Writes a knob.
    ///
    /// # Panics
    /// When the write is refused.
    pub fn write(&self, file: &str, value: &str) {
        write_knob(&self.mount(), file, value)
            .unwrap_or_else(|error| panic!("writing {value:?} to {file}: {error}"));
    }

    /// Scans as fast as it goes.
    pub fn scan_fast(&self) {
        self.write("smart_scan", "0");
        self.write("pages_to_scan", "100000");
        self.write("sleep_millisecs", "1");
        self.write("run", "1");
    }

    /// All values, for a failed test's output.
    fn print_counters(&self) {
        for file in ksm_engine::knobs::KsmFile::ALL {
            let value = self.read(file.name());
            eprintln!("{file}: {}", value.as_deref().unwrap_or("?").trim_end());
        }
    }

    /// Waits until `scans` more scans of everything have ended.
    pub fn wait_scans(&self, scans: i64) {
        let from = self.number("full_scans");
        until_true("full scans", || self.number("full_scans") >= from + scans);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_counters();
        }
        let Some(mut child) = self.child.take() else {
            let _ = rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH);
            return;
        };
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = child.wait();
    }
}

/// Writes a knob below `mount`.
///
/// # Errors
/// As the write.
pub fn write_knob(mount: &Path, file: &str, value: &str) -> io::Result<()> {
    std::fs::write(mount.join(file), value)
}
