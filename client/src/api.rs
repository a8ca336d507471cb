//! What an app calls.
//!
//! A [`Client`] is a handle on the one agent of the process: cheap to copy, usable from every thread and in every forked
//! child. Nothing here fails for lack of a daemon: the memory is registered, and merges once a daemon is there.
#![allow(
    unsafe_code,
    reason = "declares functions whose callers must keep promises; calls none"
)]

use crate::complaint;
use crate::fork::{self, PRESENCE};
use crate::inquiry::{self, Addresses};
use crate::link_state::LinkState;
use crate::presence::Presence;
use crate::region::{Keeper, MergeableRegion};
use crate::socket_path;
use crate::space::change::Change;
use crate::space::release::{Release, UnregisterError};
use crate::space::{RegisterError, Space, figures};
use crate::sys::memory::page_of;
use crate::sys::task::{self, WAKE};
use crate::trust;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use ksm_engine::wire::{Figures, Label, MountDevice, Versions};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use rustix::process::{Pid, kill_process};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// How a client is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    socket: Option<PathBuf>,
    versions: Option<Versions>,
    track_writes: bool,
    label: Option<String>,
}

/// The environment variable that names the label.
pub const LABEL_VARIABLE: &str = "KSMFS_LABEL";

impl Config {
    /// Names the daemon's socket, instead of the rule in [`crate::socket_path`].
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// Speaks these versions of the protocol only, as an older or a newer program would. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn versions(mut self, versions: Versions) -> Self {
        self.versions = Some(versions);
        self
    }

    /// Lets memory that is new or calm be write-protected, so that it need not be read again in each scan until it is written:
    /// scanning then costs a small part of what it costs without. The first write to such a page costs the app about a
    /// microsecond more.
    ///
    /// For apps that register no mergeable memory with a userfaultfd of their own: the kernel lets one have it only, so
    /// their call would fail with `EBUSY`. (The preloaded library sees such calls, and gives way.)
    #[must_use]
    pub fn track_writes(mut self) -> Self {
        self.track_writes = true;
        self
    }

    /// Asks the daemon for the domain with this label, instead of the one that the environment variable `KSMFS_LABEL`
    /// names. It is refused unless the daemon's policy lets this process have it. The empty label is none.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    fn chosen_label(&self) -> Result<Label, StartError> {
        // What is no text is no label either, and not none.
        let here = || {
            let name = std::env::var_os(LABEL_VARIABLE).unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let name = self.label.clone().unwrap_or_else(here);
        Label::new(&name).ok_or(StartError::Label(name))
    }
}

/// Why a client could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The path of the socket is no address.
    #[error("{path} cannot be the address of a socket: {errno}")]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Why: usually `ENAMETOOLONG`, for 107 bytes are the most.
        errno: Errno,
    },
    /// No such label is possible.
    #[error("{0:?} is no label: up to {most} letters, digits, and any of ._-", most = Label::LONGEST)]
    Label(String),
    /// The client of this process was started with another label.
    #[error("the client of this process was started with another label already")]
    OtherLabel,
    /// The client of this process was started with another socket.
    #[error("the client of this process was started with another socket already")]
    OtherSocket,
    /// An embedded engine merges the memory of this process.
    #[error("memory of this process is merged by an embedded engine already")]
    Embedded,
    /// There is no memory, or no thread could be made.
    #[error("{call}: {errno}")]
    Os {
        /// What was tried.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

/// Why memory could not be registered, unregistered or emptied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// The address is not that of a page.
    #[error("address {0:#x} is not at the start of a page")]
    Unaligned(usize),
    /// The range goes beyond the end of the address space.
    #[error("{len} bytes from address {addr:#x} are no range of memory")]
    Range {
        /// Its start.
        addr: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// Registering failed.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// Unregistering failed.
    #[error(transparent)]
    Unregister(#[from] UnregisterError),
    /// A system call failed.
    #[error("{call}: {errno}")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

impl RegionError {
    /// What `madvise` would have returned.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unaligned(_)
            | Self::Range { .. }
            | Self::Register(RegisterError::Range(_))
            | Self::Unregister(UnregisterError::Range(_)) => Errno::INVAL,
            Self::Register(RegisterError::Full(_))
            | Self::Unregister(UnregisterError::NoMemory { .. }) => Errno::NOMEM,
            Self::Register(RegisterError::Os { errno, .. }) | Self::Os { errno, .. } => *errno,
        }
    }
}

/// Why there are no figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no figures: {0}")]
pub struct FiguresError(pub LinkState);

/// How merging goes in this process, without asking the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// How the daemon and this process stand.
    pub link: LinkState,
    /// Process id of the agent, if there is one.
    pub agent: Option<u32>,
    /// What the agent did so far.
    pub figures: figures::Figures,
}

/// The client of this process.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    presence: &'static Presence,
}

impl Client {
    /// Starts the client of this process, or returns it if it was started with the same socket. Waits at most a
    /// second for a daemon; without one the app goes on, and the client connects when one comes.
    ///
    /// # Errors
    /// When there is no memory, no thread can be made, or the path is unusable.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let addresses = addresses(config)?;
        let label = config.chosen_label()?;
        let os = |call| move |errno| StartError::Os { call, errno };
        let space = Space::get_or_create().map_err(os("mmap of the client's state"))?;
        fork::watch().map_err(os("pthread_atfork"))?;
        fork::staff_children().map_err(os("pthread_atfork"))?;
        if !fork::claim_for_client() {
            return Err(StartError::Embedded);
        }
        let mut versions = config.versions.unwrap_or(Versions::SPOKEN);
        if !label.is_empty() {
            // An older daemon would let this process share pages that it asks not to share.
            versions = versions.with_labels();
        }
        let presence = PRESENCE
            .get_or_keep(|| Presence::new(space, addresses.clone(), versions, label))
            .map_err(os("mmap of the agent's memory"))?;
        if presence.addresses != addresses {
            return Err(StartError::OtherSocket);
        }
        if presence.label != label {
            return Err(StartError::OtherLabel);
        }
        let client = Self { presence };
        if config.track_writes {
            client.track_writes();
        }
        client
            .present()
            .map_err(os("pthread_create of the steward"))?;
        presence.wait_for_first_attempt();
        complaint::utter(presence.link.get());
        Ok(client)
    }

    /// Makes forks safe from now on, though there is no client yet. Handlers of forks run in the order of such calls.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn watch_forks() -> Result<(), Errno> {
        fork::watch()
    }

    /// The client of this process, if it was started, here or in the process that forked this one.
    #[must_use]
    pub fn current() -> Option<Self> {
        PRESENCE.get().map(|presence| Self { presence })
    }

    /// The presence, with somebody at work for it in a child that nobody told us of.
    fn present(&self) -> Result<&'static Presence, Errno> {
        if self.presence.is_inherited() {
            // Takes notice of the fork.
            let _ = self.presence.space.has_notices();
            self.presence.reset_in_child();
        }
        self.presence.start_steward()?;
        Ok(self.presence)
    }

    /// Has the pages merged from now on: the counterpart of `madvise(MADV_MERGEABLE)`. Returns when the daemon knows
    /// of them. A length that ends inside a page is rounded up; length 0 does nothing.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page, or a table is full.
    ///
    /// # Safety
    /// The memory must be private and anonymous, and the caller's. Before it is unmapped, moved or replaced, call
    /// [`Self::forget`] or [`Self::unmergeable`]; to empty it, call [`Self::discard`] and not `madvise`.
    pub unsafe fn mergeable(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        let Some(run) = run_of(addr, len)? else {
            return Ok(());
        };
        self.presence.space.register(run)?;
        self.tell();
        complaint::utter(self.presence.link.get());
        Ok(())
    }

    /// Undoes [`Self::mergeable`], as `madvise(MADV_UNMERGEABLE)` does: when it returns every page is private.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page, or there is no memory for private copies of all pages: then they
    /// are still registered.
    ///
    /// # Safety
    /// As for [`Self::mergeable`].
    pub unsafe fn unmergeable(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        let Some(run) = run_of(addr, len)? else {
            return Ok(());
        };
        self.unmerge(run)
    }

    /// The same for pages by number. They need not be registered.
    ///
    /// # Errors
    /// When there is no memory for private copies of all pages: then they are still registered.
    pub fn unmerge(&self, run: PageRun) -> Result<(), RegionError> {
        let userfaults = self.presence.borrow_userfaults();
        let release = Release::Unmerge(userfaults.as_ref());
        self.presence.space.unregister(run, release)?;
        self.tell();
        Ok(())
    }

    /// Has the daemon told of what was registered, and waits until it has been; not for ever, and not at all without
    /// a daemon.
    pub fn announce(&self) {
        self.tell();
    }

    /// Says that the pages are about to be unmapped, moved or replaced. Merged pages stay as they are.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page.
    ///
    /// # Safety
    /// Until the pages are unmapped or replaced nobody may use `madvise(MADV_DONTNEED)` on them: a merged page would
    /// not read as zero.
    pub unsafe fn forget(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        let Some(run) = run_of(addr, len)? else {
            return Ok(());
        };
        self.presence.space.unregister(run, Release::Forget)?;
        self.tell();
        Ok(())
    }

    /// Empties pages, merged or not: they read as zero afterwards, as after `madvise(MADV_DONTNEED)`.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page, or what `madvise` says.
    ///
    /// # Safety
    /// As for `madvise(MADV_DONTNEED)`: the bytes are gone, and nobody may hold a reference to them.
    pub unsafe fn discard(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        match run_of(addr, len)? {
            Some(run) => self.discard_pages(run),
            None => Ok(()),
        }
    }

    /// Maps zeroed memory that is merged.
    ///
    /// # Errors
    /// When there is no memory, or a table is full.
    pub fn allocate(&self, len: usize) -> Result<MergeableRegion, RegionError> {
        MergeableRegion::map(Keeper::Client(*self), len)
    }

    /// What the daemon counts for this process, as `/proc/self/ksm_stat` has it.
    ///
    /// # Errors
    /// When no daemon answers.
    pub fn figures(&self) -> Result<Figures, FiguresError> {
        inquiry::figures(&self.presence.addresses).map_err(FiguresError)
    }

    /// Says whether all memory of the process is to be merged, for others to be told: with the next [`Self::announce`].
    pub fn say_merges_any(&self, all: bool) {
        self.presence.merges_any.store(all, Ordering::Release);
    }

    /// How merging goes in this process.
    #[must_use]
    pub fn status(&self) -> Status {
        let link = self.presence.link.get();
        complaint::utter(link);
        let agent = self.presence.agent.load(Ordering::Acquire);
        Status {
            link,
            agent: (agent != 0).then_some(agent),
            figures: self.presence.space.figures(),
        }
    }

    /// Has the daemon told soon of what was registered, without waiting, from any place: a single system call.
    pub fn nudge(&self) {
        let agent = self.presence.agent.load(Ordering::Acquire).cast_signed();
        if let Some(agent) = Pid::from_raw(agent).filter(|_| !self.presence.is_inherited()) {
            // If it is gone, the next one tells everything anyhow.
            let _ = kill_process(agent, WAKE);
        }
    }

    /// Keeps the agent away, with all pages of `run` private: plain anonymous memory as far as that can be had.
    ///
    /// # Errors
    /// `ENOMEM` when there is not enough memory for private copies.
    pub fn change_unmerged(&self, run: PageRun) -> Result<Change<'static>, Errno> {
        let userfaults = self.presence.borrow_userfaults();
        self.presence
            .space
            .change_unmerged(run, userfaults.as_ref())
    }

    /// The app is about to register pages with a userfaultfd of its own, or to move them.
    pub fn end_tracking(&self, change: &mut Change<'_>, run: PageRun) {
        if self.presence.space.tracks_writes()
            && let Some(userfaults) = self.presence.borrow_userfaults()
        {
            change.end_tracking(&userfaults, run);
        }
    }

    /// The app is about to give up the system calls that [`end_tracking`](Self::end_tracking) takes. Returns whether writes were
    /// tracked.
    pub fn end_all_tracking(&self, change: &mut Change<'_>) -> bool {
        let space = self.presence.space;
        if !space.tracks_writes() {
            return false;
        }
        // Without userfaultfds nothing has been tracked yet, and nothing will be.
        change.end_all_tracking(space, self.presence.borrow_userfaults().as_ref());
        true
    }

    /// See [`Config::track_writes`].
    pub fn track_writes(&self) {
        if task::threads_have_pidfds() {
            self.presence.space.track_writes();
        }
    }

    pub(crate) fn register_pages(&self, run: PageRun) -> Result<(), RegionError> {
        self.presence.space.register(run)?;
        self.tell();
        Ok(())
    }

    pub(crate) fn discard_pages(&self, run: PageRun) -> Result<(), RegionError> {
        let call = "madvise";
        let discarded = self.presence.space.discard(run);
        discarded.map_err(|errno| RegionError::Os { call, errno })
    }

    pub(crate) fn forget_pages(&self, run: PageRun) {
        // Only a range beyond user memory is refused, and nothing can have been registered there.
        let _ = self.presence.space.unregister(run, Release::Forget);
        self.tell();
    }

    /// Has the daemon told, if there is one.
    fn tell(&self) {
        // Without a thread it stays queued until the next call.
        if let Ok(presence) = self.present() {
            presence.announce();
        }
    }
}

/// Asks the daemon where its files are, and which process id this process has for it. No client is started.
#[must_use]
pub fn locate() -> Option<MountDevice> {
    inquiry::locate(&addresses(&Config::default()).ok()?).ok()
}

/// The pages that an `madvise` of these bytes acts on; `None` for none.
pub(crate) fn run_of(addr: *mut u8, len: usize) -> Result<Option<PageRun>, RegionError> {
    let addr = addr.addr();
    if !addr.is_multiple_of(PAGE_SIZE) {
        return Err(RegionError::Unaligned(addr));
    }
    let run = PageRun {
        start: page_of(addr),
        len: len.div_ceil(PAGE_SIZE) as u64,
    };
    if run.len == 0 {
        Ok(None)
    } else if run.is_valid() && addr.checked_add(len).is_some() {
        Ok(Some(run))
    } else {
        Err(RegionError::Range { addr, len })
    }
}

fn addresses(config: &Config) -> Result<Addresses, StartError> {
    trust::look_around();
    let mut paths = socket_path::connect_paths(config.socket.as_deref()).into_iter();
    let mut next = || paths.next().map(|path| address(&path)).transpose();
    Ok([next()?, next()?])
}

fn address(path: &Path) -> Result<SocketAddrUnix, StartError> {
    let failed = |errno| StartError::SocketPath {
        path: path.to_owned(),
        errno,
    };
    // The agent does not stay in the app's directory.
    let absolute = std::path::absolute(path).map_err(|_| failed(Errno::INVAL))?;
    SocketAddrUnix::new(&absolute).map_err(failed)
}
