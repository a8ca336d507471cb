//! What one thread rings so that another one, which waits in `epoll`, wakes up.

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// An eventfd, readable from being rung until it is hushed. All clones are the same bell.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A silent one.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new() -> Result<Self, Errno> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(rustix::event::eventfd(0, flags)?)))
    }

    /// After what it is rung for has been made visible.
    pub fn ring(&self) {
        // EAGAIN means that the counter is full, so that the other side is awake anyhow.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Before one looks for what it was rung for, so that nothing later goes unnoticed.
    pub fn hush(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
