//! What happens around a fork of the app.
//!
//! A fork in the middle of a merge would give the child a hole where the agent holds a page; so the fork waits until the
//! agent holds nothing (tens of microseconds). The child has its parent's merged pages, with the right bytes, since
//! mappings are inherited. It gets a steward at once, for nothing could wake it later, but one that does nothing for
//! a while: most children are about to exec. `vfork` and `posix_spawn` come by none of this, and need none of it.

use crate::presence::Presence;
use crate::space::Space;
use crate::sys::room::Kept;
use crate::sys::task;
use ksm_engine::page::PageRun;
use rustix::io::Errno;
use rustix::thread::gettid;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

/// The presence of this process, once a client was started.
pub(crate) static PRESENCE: Kept<Presence> = Kept::empty();

/// Who merges memory of this process: nobody, a client, an embedded engine.
static CLAIMED: AtomicU8 = AtomicU8::new(FREE);
const FREE: u8 = 0;
const CLIENT: u8 = 1;
const EMBEDDED: u8 = 2;

fn claim(what: u8) -> bool {
    let taken = CLAIMED.compare_exchange(FREE, what, Ordering::AcqRel, Ordering::Acquire);
    taken.is_ok() || taken == Err(what) && what == CLIENT
}

/// Claims the process for its client, for good; false if an embedded engine has it.
pub(crate) fn claim_for_client() -> bool {
    claim(CLIENT)
}

/// An embedded engine's right to merge memory of this process, until dropped.
#[derive(Debug)]
pub(crate) struct Claim(());

impl Claim {
    /// Claims the process; `None` if somebody has.
    pub(crate) fn take() -> Option<Self> {
        claim(EMBEDDED).then(|| Self(()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.store(FREE, Ordering::Release);
    }
}

static WATCHED: AtomicBool = AtomicBool::new(false);
static STAFFED: AtomicBool = AtomicBool::new(false);

/// From now on forks are safe. The earlier this is registered the better: handlers that are registered later run before the lock
/// is taken, and after it is let go.
///
/// # Errors
/// When there is no memory.
pub(crate) fn watch() -> Result<(), Errno> {
    once(&WATCHED, || {
        task::at_fork(Some(before), Some(in_parent), Some(in_child))
    })
}

/// From now on children get a steward. A thread takes memory from the heap, which an allocator of the app's may keep locked
/// in a child until its own handler has run: so this is registered as late as can be, when there is somebody to work for.
///
/// # Errors
/// When there is no memory.
pub(crate) fn staff_children() -> Result<(), Errno> {
    once(&STAFFED, || {
        task::at_fork(None, None, Some(start_steward_in_child))
    })
}

fn once(done: &AtomicBool, register: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    if done.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    register().inspect_err(|_| done.store(false, Ordering::Release))
}

/// Thread id of the thread that holds the space lock for a fork, between its handlers; 0 if none does.
static FORKING: AtomicI32 = AtomicI32::new(0);

/// Whether the calling thread is inside a fork. Handlers of others run there too, and may map memory.
#[must_use]
pub fn is_forking_here() -> bool {
    let forking = FORKING.load(Ordering::Relaxed);
    forking != 0 && forking == gettid().as_raw_pid()
}

/// A fork that the C library makes no handlers run for: a bare system call, or its `clone`. Nobody may return from the function
/// that dropped it in the child before it is said which side this is.
#[derive(Debug)]
pub struct BareFork(&'static Space);

impl BareFork {
    /// Keeps the agent away; `None` if there is none to keep away, or the calling thread is inside a fork already.
    #[must_use]
    pub fn begin() -> Option<Self> {
        let space = Space::get().filter(|_| !is_forking_here())?;
        space.lock_for_fork();
        FORKING.store(gettid().as_raw_pid(), Ordering::Relaxed);
        Some(Self(space))
    }

    /// In the parent, also if there is no child.
    pub fn end_in_parent(self) {
        FORKING.store(0, Ordering::Relaxed);
        self.0.unlock_parent();
    }

    /// In the child, which has its parent's merged pages. It gets no steward before it asks for something: the C library's
    /// own locks may have been held by threads that are not here.
    pub fn end_in_child(self) {
        FORKING.store(0, Ordering::Relaxed);
        self.0.reset_child();
        if let Some(presence) = PRESENCE.get() {
            presence.reset_in_child();
        }
    }
}

extern "C" fn before() {
    if let Some(space) = Space::get() {
        let joins = has_registered(space);
        space.lock_for_fork();
        FORKING.store(gettid().as_raw_pid(), Ordering::Relaxed);
        if let Some(presence) = PRESENCE.get().filter(|_| joins) {
            presence.note_fork();
        }
    }
}

extern "C" fn in_parent() {
    // Not if the space was made by another thread meanwhile.
    if let Some(space) = Space::get().filter(|_| is_forking_here()) {
        FORKING.store(0, Ordering::Relaxed);
        space.unlock_parent();
    }
}

extern "C" fn in_child() {
    FORKING.store(0, Ordering::Relaxed);
    let Some(space) = Space::get() else {
        return;
    };
    space.reset_child();
    if let Some(presence) = PRESENCE.get() {
        presence.reset_in_child();
    }
}

extern "C" fn start_steward_in_child() {
    let Some((space, presence)) = Space::get().zip(PRESENCE.get()) else {
        return;
    };
    if has_registered(space) && presence.start_steward().is_err() {
        // The child goes on unmerged; the next call of ours tries again.
        presence.note_death();
    }
}

fn has_registered(space: &Space) -> bool {
    space.first_registered(PageRun::EVERYTHING).is_some()
}
