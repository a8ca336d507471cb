//! Starting the daemon, and stopping it so that nothing is left.
//!
//! Two threads: one answers FUSE, one owns the engine ([`crate::daemon`]). Everything that can be refused is tried
//! before the mount appears, so that a failed start leaves neither a mount nor a socket.

use crate::daemon::{Daemon, Listener, SocketError};
use crate::fuse::KsmFs;
use crate::mailbox::{Mailbox, Request, mailbox};
use crate::mountpoint::{self, MountpointError};
use crate::namespace;
use crate::policy::Policy;
use crate::quotas::Quotas;
use crate::sandbox::{self, SandboxError};
use crate::tree::Tree;
use crate::uffd::{self, UffdError};
use crossbeam_channel::{Receiver, Sender};
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use ksm_engine::engine::Extras;
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::wire::Versions;
use rustix::fs::Mode;
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// How long the FUSE thread may take to end after the unmount. Longer only if a user's mount has open files.
const FUSE_END: Duration = Duration::from_secs(2);

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to mount.
    pub directory: PathBuf,
    /// Where to listen.
    pub socket: PathBuf,
    /// Values to set before the mount appears.
    pub knobs: Vec<(KsmFile, String)>,
    /// How much one user may have.
    pub quotas: Quotas,
    /// Give up rights that are not needed any more: this process is nothing but the daemon, and has one thread.
    pub sandbox: bool,
    /// What is done that the kernel does not do.
    pub extras: Extras,
    /// Which processes may have pages in common.
    pub policy: Policy,
    /// Leave the mount to the other processes of this mount namespace: the daemon goes on in a namespace of its own,
    /// without the mount, and ends when the last process that sees it has gone.
    pub hand_over: bool,
    /// The versions of the protocol that are spoken: fewer only in tests.
    #[doc(hidden)]
    pub versions: Versions,
}

impl Options {
    /// A daemon with the kernel's default values.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            socket: socket.into(),
            knobs: Vec::new(),
            quotas: Quotas::default(),
            sandbox: false,
            extras: Extras::default(),
            policy: Policy::default(),
            hand_over: false,
            versions: Versions::SPOKEN,
        }
    }

    /// Sets a value before the mount appears.
    #[must_use]
    pub fn knob(mut self, file: KsmFile, value: impl Into<String>) -> Self {
        self.knobs.push((file, value.into()));
        self
    }
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory.
    #[error("{0}")]
    Mountpoint(#[from] MountpointError),
    /// The socket.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// The kernel cannot move pages, or root cannot get at it.
    #[error("{0}")]
    Uffd(#[from] UffdError),
    /// A value to start with was refused.
    #[error("{file} does not take {value:?}: {error}")]
    Knob {
        /// The file.
        file: KsmFile,
        /// The value.
        value: String,
        /// What it answered.
        error: WriteError,
    },
    /// The mount was refused.
    #[error("mounting at {0}: {1}")]
    Mount(PathBuf, io::Error),
    /// Rights could not be given up.
    #[error("{0}; --no-sandbox does without")]
    Sandbox(#[from] SandboxError),
    /// Something else failed.
    #[error("{0}: {1}")]
    Os(&'static str, Errno),
}

/// One of the two threads has ended without being told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Somebody unmounted the directory.
    Unmounted,
    /// The engine's thread failed.
    EngineGone,
}

/// Says that a thread has ended, by being dropped with it.
#[derive(Debug)]
pub struct EndNote {
    end: End,
    to: Sender<End>,
}

impl Drop for EndNote {
    fn drop(&mut self) {
        // The channel has room for one note of each thread.
        let _ = self.to.try_send(self.end);
    }
}

/// A daemon that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    directory: PathBuf,
    socket: PathBuf,
    /// Device number of the mount.
    device: Option<String>,
    mailbox: Mailbox,
    engine: Option<JoinHandle<()>>,
    fuse: Option<JoinHandle<io::Result<()>>>,
    unmounter: SessionUnmounter,
    ended: Receiver<End>,
}

/// Starts a daemon.
///
/// # Errors
/// When anything is missing or in use. Nothing is left behind then.
pub fn mount(options: &Options) -> Result<Running, StartError> {
    let os = |call| move |errno| StartError::Os(call, errno);
    let directory = mountpoint::prepare(&options.directory, options.hand_over)?;
    let uffd = match uffd::open_device() {
        Ok(device) => Some(device),
        Err(error @ (UffdError::NoAccess | UffdError::Missing)) if !is_root() => {
            log::warn!(
                "{error}. Only processes that can make a userfaultfd themselves will merge."
            );
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mode = if is_root() { 0o666 } else { 0o600 };
    let listener = Listener::bind(&options.socket, Mode::from_raw_mode(mode))?;
    let (mailbox, inbox) = mailbox().map_err(os("eventfd"))?;
    let mut daemon =
        Daemon::new(listener, inbox, uffd, options.quotas).map_err(os("epoll_create"))?;
    daemon.set_extras(options.extras);
    daemon.set_versions(options.versions);
    daemon.set_policy(options.policy.clone());
    for (file, value) in &options.knobs {
        daemon
            .preset(*file, value)
            .map_err(|error| StartError::Knob {
                file: *file,
                value: value.clone(),
                error,
            })?;
    }
    let (to, ended) = crossbeam_channel::bounded(2);
    let note = |end| EndNote {
        end,
        to: to.clone(),
    };
    let mut session = open_session(&directory, &mailbox, || note(End::Unmounted))
        .map_err(|error| StartError::Mount(options.directory.clone(), error))?;
    // A first try without success has left a note, though nothing has ended.
    while ended.try_recv().is_ok() {}
    let unmounter = session.unmount_callable();
    let device = mountpoint::device_at(&directory);
    daemon.set_mount(
        device
            .as_deref()
            .map_or_else(Default::default, mountpoint::number),
    );
    if options.hand_over {
        // No thread was started yet, so all of this process changes the namespace.
        namespace::leave_mount(&directory).map_err(os("unshare"))?;
    }
    let engine_note = note(End::EngineGone);
    // From here on `Running` cleans up, whatever fails.
    let mut running = Running {
        directory,
        socket: options.socket.clone(),
        device,
        mailbox,
        engine: None,
        fuse: None,
        unmounter,
        ended,
    };
    if options.sandbox && is_root() {
        sandbox::enter(&running.directory, &running.socket)?;
    }
    let thread = |name: &str| std::thread::Builder::new().name(name.into());
    let spawn = |error: io::Error| {
        StartError::Os(
            "thread",
            Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
        )
    };
    let engine = thread("engine").spawn(move || {
        let _note = engine_note;
        daemon.run();
    });
    running.engine = Some(engine.map_err(spawn)?);
    running.fuse = Some(thread("fuse").spawn(move || session.run()).map_err(spawn)?);
    Ok(running)
}

impl Running {
    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Gets a note when the daemon ends by itself.
    #[must_use]
    pub fn ended(&self) -> Receiver<End> {
        self.ended.clone()
    }

    /// Unmounts and stops. Merged pages stay as they are in the processes that have them.
    pub fn stop(self) {
        drop(self);
    }

    fn shut_down(&mut self) {
        // The engine first: a writer that waits for an unmerge is answered, and does not keep the mount busy.
        self.mailbox.post(Request::Stop);
        if let Some(Err(_)) = self.engine.take().map(JoinHandle::join) {
            log::error!("the engine's thread had failed");
        }
        if self.fuse.as_ref().is_none_or(|fuse| !fuse.is_finished()) {
            self.unmount();
        }
        if let Some(fuse) = self.fuse.take() {
            let unmounted = fuse.is_finished() || self.wait_for_fuse();
            if unmounted && let Ok(Err(error)) = fuse.join() {
                log::error!("FUSE: {error}");
            }
        }
    }

    fn unmount(&mut self) {
        let Err(error) = self.unmounter.unmount() else {
            return;
        };
        log::info!("{}: {error}: detaching it", self.directory.display());
        let device = self.device.as_deref().unwrap_or_default();
        if let Err(errno) = mountpoint::detach(&self.directory, device) {
            log::error!("{}: cannot unmount: {errno}", self.directory.display());
        }
    }

    fn wait_for_fuse(&self) -> bool {
        let deadline = std::time::Instant::now() + FUSE_END;
        loop {
            match self.ended.recv_deadline(deadline) {
                Ok(End::Unmounted) => return true,
                Ok(End::EngineGone) => {}
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Mounts. A user who may not let others in gets a mount for himself.
fn open_session(
    directory: &Path,
    mailbox: &Mailbox,
    note: impl Fn() -> EndNote,
) -> io::Result<Session<KsmFs>> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let open = |acl| {
        let tree = Tree::new(uid, gid, SystemTime::now());
        let fs = KsmFs::new(tree, mailbox.clone(), note());
        Session::new(fs, directory, &config(acl))
    };
    match open(SessionACL::All) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root() => {
            log::warn!(
                "only this user will see the files: user_allow_other is not in /etc/fuse.conf"
            );
            open(SessionACL::Owner)
        }
        opened => opened,
    }
}

fn config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("ksmfs".into()),
        // `MountOption::Subtype` does not reach the kernel when root mounts.
        MountOption::CUSTOM("subtype=ksmfs".into()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
    ];
    config.acl = acl;
    config.n_threads = Some(1);
    config
}
