//! The whole of it inside one process: no daemon, no socket, no mount.
//!
//! For an app that wants its own duplicates merged and nothing else, and for trying things out. The very engine of the
//! daemon decides, the very agent does; but the agent is no task of its own here: it works in whichever thread drives
//! the engine, so merging stands still when the app does. One process has either this or a [`Client`](crate::Client).
#![allow(
    unsafe_code,
    reason = "declares functions whose callers must keep promises; calls none"
)]

mod core;

use self::core::Core;
use crate::api::{RegionError, run_of};
use crate::region::{Keeper, MergeableRegion};
use crate::space::Space;
use crate::space::release::Release;
use crate::steward::open_userfaults;
use crate::sys::uffd::Userfaults;
use crate::{agent, fork};
use ksm_engine::engine::{ReportError, Ticket, Written};
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::page::PageRun;
use ksm_engine::wire::Figures;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Why merging inside this process does not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbeddedError {
    /// This process has a client of a daemon, or another embedded engine.
    #[error("memory of this process is merged by somebody else already")]
    Taken,
    /// No access to userfaultfd.
    #[error(
        "no access to userfaultfd ({0}): run as root, or give this user access to /dev/userfaultfd"
    )]
    NoUserfaultfd(Errno),
    /// The kernel is older than 6.8.
    #[error("the kernel's userfaultfd cannot move pages: Linux 6.8 or later is needed")]
    OldKernel,
    /// The agent could not be made.
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    /// Engine and agent do not understand each other.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A system call failed.
    #[error("{call}: {errno}")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// There is no such file in the directory.
    #[error("there is no file {0:?} in /sys/kernel/mm/ksm")]
    NoSuchFile(String),
    /// The file does not take what was written.
    #[error("{file}: {error}")]
    Write {
        /// The file.
        file: KsmFile,
        /// Why.
        error: WriteError,
    },
    /// Nothing scans: `run` is not 1.
    #[error("no scan will end while `run` is not 1")]
    NotRunning,
    /// This is a forked child: the engine works for the parent's memory.
    #[error("the engine of a parent process does not work for its children")]
    Forked,
}

/// An engine for this process alone. Cheap to clone; the last one dropped gives every page back to itself.
#[derive(Clone, Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    space: &'static Space,
    /// `None` only while it is dropped.
    core: Option<Mutex<Core>>,
    /// Something has happened that the background thread should look at.
    news: Condvar,
    /// The process whose memory the engine works for.
    owner: rustix::process::Pid,
    /// A copy for the calls that unmerge.
    userfaults: Userfaults,
}

/// Drives the engine from a thread of its own, until dropped.
#[derive(Debug)]
pub struct Background {
    of: Embedded,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Makes the engine, with the kernel's defaults: `run` is 0.
    ///
    /// # Errors
    /// When userfaultfd cannot be used, or something else of this process merges already.
    pub fn new() -> Result<Self, EmbeddedError> {
        let os = |call| move |errno| EmbeddedError::Os { call, errno };
        let space = Space::get_or_create().map_err(os("mmap of the page states"))?;
        fork::watch().map_err(os("pthread_atfork"))?;
        let claim = fork::Claim::take().ok_or(EmbeddedError::Taken)?;
        let userfaults = open_userfaults(None).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS | Errno::NOSYS => EmbeddedError::NoUserfaultfd(errno),
            Errno::INVAL => EmbeddedError::OldKernel,
            errno => os("userfaultfd")(errno),
        })?;
        let copy = userfaults.try_clone().map_err(os("dup of userfaultfd"))?;
        let shared = Shared {
            space,
            core: Some(Mutex::new(Core::new(space, userfaults, claim)?)),
            news: Condvar::new(),
            owner: rustix::process::getpid(),
            userfaults: copy,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Maps zeroed memory that is merged.
    ///
    /// # Errors
    /// When there is no memory, or a table is full.
    pub fn allocate(&self, len: usize) -> Result<MergeableRegion, RegionError> {
        MergeableRegion::map(Keeper::Embedded(self.clone()), len)
    }

    /// Has the pages merged from now on, as [`Client::mergeable`](crate::Client::mergeable) does.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page, or a table is full.
    ///
    /// # Safety
    /// The memory must be private and anonymous, and the caller's, and no stack. Before it is unmapped, moved or replaced,
    /// call [`Self::unmergeable`]; to empty it, call [`Self::discard`] and not `madvise`.
    pub unsafe fn mergeable(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        match run_of(addr, len)? {
            Some(run) => self.register_pages(run),
            None => Ok(()),
        }
    }

    /// Undoes [`Self::mergeable`]: when it returns every page is private.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page, or there is no memory for private copies of all pages.
    ///
    /// # Safety
    /// As for [`Self::mergeable`].
    pub unsafe fn unmergeable(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        let Some(run) = run_of(addr, len)? else {
            return Ok(());
        };
        // A child has the parent's descriptors, which work on the parent's memory.
        let userfaults = self.is_ours().then_some(&self.shared.userfaults);
        let release = Release::Unmerge(userfaults);
        self.shared.space.unregister(run, release)?;
        self.tell();
        Ok(())
    }

    /// Empties pages, merged or not, as [`Client::discard`](crate::Client::discard) does.
    ///
    /// # Errors
    /// When `addr` is not at the start of a page, or what `madvise` says.
    ///
    /// # Safety
    /// As for `madvise(MADV_DONTNEED)`.
    pub unsafe fn discard(&self, addr: *mut u8, len: usize) -> Result<(), RegionError> {
        match run_of(addr, len)? {
            Some(run) => self.discard_pages(run),
            None => Ok(()),
        }
    }

    /// Reads a file of `/sys/kernel/mm/ksm`, without its newline.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(&self, file: &str) -> Result<String, EmbeddedError> {
        let file = file_named(file)?;
        let text = self.core()?.engine.read(file);
        Ok(text.trim_end().to_owned())
    }

    /// Reads a counter.
    ///
    /// # Errors
    /// When there is no such file, or it holds no number.
    pub fn count(&self, file: &str) -> Result<u64, EmbeddedError> {
        let text = self.read(file)?;
        text.parse()
            .map_err(|_| EmbeddedError::NoSuchFile(file.to_owned()))
    }

    /// Writes a file of `/sys/kernel/mm/ksm`. Returns when the value is in force: `2` to `run` unmerges everything.
    ///
    /// # Errors
    /// When there is no such file, or it does not take the value.
    pub fn write_knob(&self, file: &str, value: &str) -> Result<(), EmbeddedError> {
        let file = file_named(file)?;
        let failed = |error| EmbeddedError::Write { file, error };
        let mut core = self.core()?;
        core.turn()?;
        let written = core.engine.write(file, value.as_bytes()).map_err(failed)?;
        if let Written::Pending(ticket) = written {
            self.finish(&mut core, ticket)?.map_err(failed)?;
        }
        drop(core);
        self.shared.news.notify_all();
        Ok(())
    }

    fn finish(
        &self,
        core: &mut MutexGuard<'_, Core>,
        ticket: Ticket,
    ) -> Result<Result<(), WriteError>, EmbeddedError> {
        loop {
            core.turn()?;
            while let Some((finished, result)) = core.engine.take_finished() {
                if finished == ticket {
                    return Ok(result);
                }
            }
            let time = core.time_to_wake();
            self.shared.news.wait_for(core, time);
        }
    }

    /// Drives the engine on this thread until `full_scans` has reached `scans`.
    ///
    /// # Errors
    /// When `run` is not 1.
    pub fn run_until_full_scans(&self, scans: u64) -> Result<(), EmbeddedError> {
        let mut core = self.core()?;
        loop {
            core.turn()?;
            if core.engine.counters().full_scans >= scans {
                return Ok(());
            }
            if core.engine.read(KsmFile::Run).trim_end() != "1" {
                return Err(EmbeddedError::NotRunning);
            }
            let time = core.time_to_wake();
            self.shared.news.wait_for(&mut core, time);
        }
    }

    /// Starts a thread that drives the engine, whatever `run` says, until the result is dropped.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn spawn(&self) -> Result<Background, EmbeddedError> {
        drop(self.core()?);
        let stop = Arc::new(AtomicBool::new(false));
        let (of, stopped) = (self.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("ksm-embedded".to_owned())
            .spawn(move || of.drive(&stopped))
            .map_err(|error| EmbeddedError::Os {
                call: "pthread_create",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            })?;
        Ok(Background {
            of: self.clone(),
            stop,
            thread: Some(thread),
        })
    }

    fn drive(&self, stop: &AtomicBool) {
        if let Err(error) = self.drive_until(stop) {
            log::error!("merging ends: {error}");
        }
    }

    fn drive_until(&self, stop: &AtomicBool) -> Result<(), EmbeddedError> {
        let mut core = self.core()?;
        while !stop.load(Ordering::Acquire) {
            core.turn()?;
            let time = core.time_to_wake();
            self.shared.news.wait_for(&mut core, time);
        }
        Ok(())
    }

    /// The figures of this process.
    ///
    /// # Errors
    /// In a forked child.
    pub fn figures(&self) -> Result<Figures, EmbeddedError> {
        let core = self.core()?;
        Ok(core.engine.figures(core.mm))
    }

    pub(crate) fn register_pages(&self, run: PageRun) -> Result<(), RegionError> {
        self.shared.space.register(run)?;
        self.tell();
        Ok(())
    }

    pub(crate) fn discard_pages(&self, run: PageRun) -> Result<(), RegionError> {
        let call = "madvise";
        let discarded = self.shared.space.discard(run);
        discarded.map_err(|errno| RegionError::Os { call, errno })
    }

    pub(crate) fn forget_pages(&self, run: PageRun) {
        // Only a range beyond user memory is refused, and nothing can have been registered there.
        let _ = self.shared.space.unregister(run, Release::Forget);
        self.tell();
    }

    /// The next turn of the engine sees what was registered.
    fn tell(&self) {
        self.shared.news.notify_all();
    }

    fn is_ours(&self) -> bool {
        rustix::process::getpid() == self.shared.owner
    }

    /// In a child there is none: its lock may be held for ever by a thread that the child does not have.
    fn core(&self) -> Result<MutexGuard<'_, Core>, EmbeddedError> {
        match &self.shared.core {
            Some(core) if self.is_ours() => Ok(core.lock()),
            _ => Err(EmbeddedError::Forked),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Under the lock, or the thread might be about to wait.
        drop(self.of.core());
        self.of.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, that was said.
            let _ = thread.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let core = self.core.take();
        if rustix::process::getpid() == self.owner {
            if let Some(core) = core {
                core.into_inner().release_everything(&self.userfaults);
            }
        } else {
            // The agent's memory was unmapped right after the fork; its addresses may be somebody's by now.
            std::mem::forget(core);
        }
    }
}

fn file_named(name: &str) -> Result<KsmFile, EmbeddedError> {
    KsmFile::from_name(name).ok_or_else(|| EmbeddedError::NoSuchFile(name.to_owned()))
}
