//! How requests for values reach the thread that owns the engine.
//!
//! The FUSE thread posts and goes on at once; the answer is given later by calling the closure that came with the
//! request. So a write that waits for an unmerge holds up nobody else. A request that can no longer be answered is
//! dropped, and the FUSE reply in it answers EIO.

use crate::bell::Bell;
use crossbeam_channel::{Receiver, Sender};
use ksm_engine::knobs::KsmFile;
use ksm_engine::process_file::ProcessFile;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// Takes the text of a file.
pub type ReadReply = Box<dyn FnOnce(&str) + Send>;
/// Takes the outcome of a write.
pub type WriteReply = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// Takes the text of a file of a process; `None` if that does not take part.
pub type ProcessReply = Box<dyn FnOnce(Option<&str>) + Send>;
/// Takes the user of a process; `None` if that does not take part.
pub type UserReply = Box<dyn FnOnce(Option<u32>) + Send>;

/// Something for the engine's thread to do.
pub enum Request {
    /// Read a file.
    Read {
        /// Which.
        file: KsmFile,
        /// Gets the text.
        reply: ReadReply,
    },
    /// Write a file.
    Write {
        /// Which.
        file: KsmFile,
        /// The bytes written, at most [`crate::tree::WRITE_LIMIT`].
        value: Vec<u8>,
        /// Gets the outcome, perhaps much later.
        reply: WriteReply,
    },
    /// Find a process that takes part.
    FindProcess {
        /// Its process id.
        pid: u32,
        /// Gets its user.
        reply: UserReply,
    },
    /// Read a file of a process.
    ReadProcess {
        /// Its process id.
        pid: u32,
        /// Which file.
        file: ProcessFile,
        /// Gets the text.
        reply: ProcessReply,
    },
    /// End the thread.
    Stop,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { file, .. } => write!(f, "Read({file})"),
            Self::Write { file, .. } => write!(f, "Write({file})"),
            Self::FindProcess { pid, .. } => write!(f, "FindProcess({pid})"),
            Self::ReadProcess { pid, file, .. } => write!(f, "ReadProcess({pid}, {file:?})"),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// The posting end.
#[derive(Clone, Debug)]
pub struct Mailbox {
    requests: Sender<Request>,
    wake: Bell,
}

/// The receiving end.
#[derive(Debug)]
pub struct Inbox {
    requests: Receiver<Request>,
    wake: Bell,
}

/// A mailbox and its inbox.
///
/// # Errors
/// When no eventfd can be made.
pub fn mailbox() -> Result<(Mailbox, Inbox), Errno> {
    let wake = Bell::new()?;
    let (sender, receiver) = crossbeam_channel::unbounded();
    let mailbox = Mailbox {
        requests: sender,
        wake: wake.clone(),
    };
    let inbox = Inbox {
        requests: receiver,
        wake,
    };
    Ok((mailbox, inbox))
}

impl Mailbox {
    /// Posts a request. When the engine's thread is gone the request is dropped, which answers it.
    pub fn post(&self, request: Request) {
        if self.requests.send(request).is_ok() {
            self.wake.ring();
        }
    }
}

impl Inbox {
    /// Readable when a request was posted.
    #[must_use]
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// All requests posted so far. The wake-up is taken back first, so that none posted later goes unnoticed.
    pub fn take(&self) -> Vec<Request> {
        self.wake.hush();
        self.requests.try_iter().collect()
    }
}
