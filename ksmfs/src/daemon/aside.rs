//! What may take its time is done aside, never by the thread that owns the engine.
//!
//! The last close of a descriptor that a stranger made can take as long as the stranger likes: a socket that lingers, a
//! file whose file system does not answer. So no descriptor that came from a peer is closed here, nor a peer's socket, in
//! which others may be under way. Sealing an arena waits for whoever has pinned its pages.

use crate::bell::Bell;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use ksm_engine::arena::{Adoptable, seal_for_good};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Closes that may take long at the same time. Further ones wait.
const MOST_CLOSERS: usize = 16;
/// How long a closer without work stays.
const IDLE: Duration = Duration::from_secs(10);
/// How often an arena is tried to be sealed whose daemon seems to live, and the pause in between: the memory of a process
/// that was killed is gone a moment after its sockets are.
const SEALING_TRIES: u32 = 60;
const SEALING_PAUSE: Duration = Duration::from_millis(50);
/// Arenas that may wait to be sealed. Each domain was filling one of each node.
const MOST_TO_SEAL: usize = 256;

/// Closes descriptors.
#[derive(Debug)]
pub struct Closer {
    jobs: (Sender<OwnedFd>, Receiver<OwnedFd>),
    crew: Arc<Crew>,
}

#[derive(Debug, Default)]
struct Crew {
    threads: AtomicUsize,
    /// Descriptors that are not closed yet.
    pending: AtomicUsize,
}

impl Closer {
    /// Without threads, as long as there is nothing to close.
    #[must_use]
    pub fn new() -> Self {
        Self {
            jobs: crossbeam_channel::unbounded(),
            crew: Arc::default(),
        }
    }

    /// Closes a descriptor before long.
    pub fn close(&self, descriptor: OwnedFd) {
        let pending = self.crew.pending.fetch_add(1, Ordering::AcqRel) + 1;
        let threads = self.crew.threads.load(Ordering::Acquire);
        if pending > threads && threads < MOST_CLOSERS {
            self.hire();
        }
        // Cannot fail: this end keeps a receiver.
        let _ = self.jobs.0.send(descriptor);
    }

    fn hire(&self) {
        let (jobs, crew) = (self.jobs.1.clone(), Arc::clone(&self.crew));
        crew.threads.fetch_add(1, Ordering::AcqRel);
        let thread = std::thread::Builder::new().name("closer".into());
        let work = move || {
            while let Ok(descriptor) = jobs.recv_timeout(IDLE) {
                drop(descriptor);
                crew.pending.fetch_sub(1, Ordering::AcqRel);
            }
            crew.threads.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = thread.spawn(work) {
            self.crew.threads.fetch_sub(1, Ordering::AcqRel);
            log::warn!("descriptors are closed late: {error}");
        }
    }
}

/// Sets the last seals of arenas that were still being filled.
#[derive(Debug)]
pub struct Sealer {
    jobs: Option<Sender<Adoptable>>,
    sealed: (Sender<Adoptable>, Receiver<Adoptable>),
    /// Readable when one is sealed.
    ready: Bell,
    waiting: Arc<AtomicUsize>,
}

impl Sealer {
    /// Without a thread, until there is something to seal.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            jobs: None,
            sealed: crossbeam_channel::unbounded(),
            ready: Bell::new()?,
            waiting: Arc::default(),
        })
    }

    /// Readable when an arena is sealed.
    #[must_use]
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Seals an arena, if that can be done before long. Whose daemon lives is given up.
    pub fn seal(&mut self, arena: Adoptable) {
        if self.waiting.load(Ordering::Acquire) >= MOST_TO_SEAL {
            return;
        }
        if self.jobs.is_none() {
            match self.start() {
                Ok(jobs) => self.jobs = Some(jobs),
                Err(error) => log::warn!("an arena is not taken over: {error}"),
            }
        }
        if let Some(jobs) = &self.jobs {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let _ = jobs.send(arena);
        }
    }

    /// Arenas that were sealed since this was asked last.
    pub fn take(&self) -> Vec<Adoptable> {
        self.ready.hush();
        self.sealed.1.try_iter().collect()
    }

    fn start(&self) -> std::io::Result<Sender<Adoptable>> {
        let (sender, jobs) = crossbeam_channel::unbounded();
        let (sealed, ready) = (self.sealed.0.clone(), self.ready.clone());
        let waiting = Arc::clone(&self.waiting);
        let done = move |arena| {
            waiting.fetch_sub(1, Ordering::AcqRel);
            if let Some(arena) = arena
                && sealed.send(arena).is_ok()
            {
                ready.ring();
            }
        };
        let thread = std::thread::Builder::new().name("sealer".into());
        thread.spawn(move || seal_all(&jobs, &done))?;
        Ok(sender)
    }
}

/// Goes round those that wait, until nobody wants anything sealed any more.
fn seal_all(jobs: &Receiver<Adoptable>, done: &dyn Fn(Option<Adoptable>)) {
    let mut busy: Vec<(Adoptable, u32)> = Vec::new();
    loop {
        let next = if busy.is_empty() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(SEALING_PAUSE)
        };
        match next {
            Ok(arena) => busy.push((arena, 0)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for (mut arena, tries) in std::mem::take(&mut busy) {
            match seal_for_good(&mut arena) {
                Ok(()) => done(Some(arena)),
                Err(Errno::BUSY | Errno::AGAIN) if tries < SEALING_TRIES => {
                    busy.push((arena, tries + 1));
                }
                Err(errno) => {
                    log::info!("arena {:#x} is not taken over: {errno}", arena.inode);
                    done(None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Closer;
    use rustix::net::sockopt;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    /// A socket whose last close waits for a minute: nobody takes what was sent.
    fn lingering() -> (OwnedFd, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        while rustix::io::write(&stream, &[0; 65536]).is_ok() {}
        let time = Some(Duration::from_secs(60));
        sockopt::set_socket_linger(stream.as_fd(), time).unwrap();
        (stream.into(), listener)
    }

    #[test]
    fn a_descriptor_that_takes_long_to_close_holds_up_no_other() {
        let closer = Closer::new();
        let (slow, _listener) = lingering();
        closer.close(slow);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        closer.close(theirs.into());
        // Ends when the other end is closed; the test's own patience is the limit.
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut &ours, &mut rest).unwrap();
    }
}
