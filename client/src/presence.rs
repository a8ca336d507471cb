//! What the app's threads, the steward and the agent tell each other.
//!
//! It lies in memory of our own, so that the agent may look at it while it holds any page of the app. There is one in a
//! process; a forked child inherits it and starts afresh. All of it is atomics: no task ever waits for another one's
//! lock here.

use crate::desk::Desk;
use crate::link_state::{LinkState, LinkWord};
use crate::space::Space;
use crate::sys::ledger::LedgerPlace;
use crate::sys::memory::{pages_of, place_wiped_on_fork};
use crate::sys::room::{Stack, Workplace};
use crate::sys::task::{self, PIDFD_THREAD, WAKE};
use crate::sys::uffd::Userfaults;
use crate::tickets::{Tickets, wait_until};
use crate::word::{wait, wake_all};
use ksm_engine::wire::{Birth, CHILDREN, GONE, Label, Versions};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use rustix::process::{Pid, PidfdGetfdFlags, kill_process, pidfd_getfd, pidfd_open};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long an app thread waits at most for the daemon to be told of a registration, or for the first connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pages of a stack. Only what is touched takes memory. On the steward's, the C library puts the thread-local storage of
/// all libraries as well.
const STACK_PAGES: usize = 256;
/// How often the steward of a child looks whether the daemon calls.
const CALL: Duration = Duration::from_millis(2);

/// See the module.
#[derive(Debug)]
pub struct Presence {
    /// The address space's state.
    pub space: &'static Space,
    /// Where the daemon may listen.
    pub addresses: [Option<SocketAddrUnix>; 2],
    /// The versions of the protocol that are spoken.
    pub versions: Versions,
    /// The domain that is asked for.
    pub label: Label,
    /// The stack of the steward.
    steward_stack: Stack,
    /// The stack of the agent.
    pub agent_stack: Stack,
    /// Where the steward, and then the agent, reads and writes messages.
    pub desk: Workplace<Desk>,
    /// How the daemon and we stand.
    pub link: LinkWord,
    /// Process id of the app.
    pub app: AtomicU32,
    /// Process id of the process that this one was forked from with merged pages; 0 if none.
    pub parent: AtomicU32,
    /// Process id of the agent; 0 if there is none.
    pub agent: AtomicU32,
    /// Whether the agent is to end.
    pub dismissed: AtomicBool,
    /// Thread id of the steward; 0 if there is none.
    pub steward: AtomicU32,
    /// The steward's userfaultfds, as numbers in its own descriptor table, plus one; 0 if there are none.
    userfaults: [AtomicU32; 2],
    /// Whether somebody has started, or is starting, the steward.
    has_steward: AtomicBool,
    /// Whether a steward of a child that is waiting to see if it lives should wait no longer.
    hurry: AtomicU32,
    /// Not zero; zero in a child with a copy of this memory until it is [reset](Self::reset_in_child).
    native: &'static AtomicU32,
    /// Where forks are noted.
    ledger: LedgerPlace,
    /// The fork that is about to be made: numbers of ledger and child.
    fork: [AtomicU32; 2],
    /// The fork that this process came from, until it has joined.
    birth: [AtomicU32; 2],
    /// Whether all memory of the process is to be merged, for the daemon to say so to others.
    pub merges_any: AtomicBool,
    /// Attempts to connect that have come to an end.
    attempts: AtomicU32,
    /// Requests to send what is queued.
    pub tickets: Tickets,
}

impl Presence {
    /// A presence without steward and agent.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(
        space: &'static Space,
        addresses: [Option<SocketAddrUnix>; 2],
        versions: Versions,
        label: Label,
    ) -> Result<Self, Errno> {
        let new = Self {
            space,
            addresses,
            versions,
            label,
            steward_stack: Stack::map(STACK_PAGES)?,
            agent_stack: Stack::map(STACK_PAGES)?,
            desk: Workplace::map()?,
            link: LinkWord::new(LinkState::Starting),
            app: AtomicU32::new(process_id()),
            parent: AtomicU32::new(0),
            agent: AtomicU32::new(0),
            dismissed: AtomicBool::new(false),
            steward: AtomicU32::new(0),
            userfaults: [AtomicU32::new(0), AtomicU32::new(0)],
            has_steward: AtomicBool::new(false),
            hurry: AtomicU32::new(0),
            native: place_wiped_on_fork()?,
            ledger: LedgerPlace::map()?,
            fork: Default::default(),
            birth: Default::default(),
            merges_any: AtomicBool::new(false),
            attempts: AtomicU32::new(0),
            tickets: Tickets::default(),
        };
        for own in [
            new.steward_stack.run(),
            new.agent_stack.run(),
            new.desk.run(),
            new.ledger.run(),
            pages_of(new.native),
        ] {
            space.add_own_range(own).map_err(|_| Errno::NOMEM)?;
        }
        new.native.store(1, Ordering::Release);
        Ok(new)
    }

    /// Starts the steward unless it has been started.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start_steward(&'static self) -> Result<(), Errno> {
        if self.has_steward.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        task::start_thread(self.steward_stack, self)
            .inspect_err(|_| self.has_steward.store(false, Ordering::Release))
    }

    /// In a child just forked: nobody works for it yet.
    pub fn reset_in_child(&self) {
        let parent = self.app.swap(process_id(), Ordering::Relaxed);
        self.parent.store(parent, Ordering::Relaxed);
        self.note_birth();
        self.link.set(LinkState::Starting);
        self.desk.reset_in_child();
        let [moving, protecting] = &self.userfaults;
        for zeroed in [
            &self.agent,
            &self.steward,
            moving,
            protecting,
            &self.hurry,
            &self.attempts,
        ] {
            zeroed.store(0, Ordering::Relaxed);
        }
        self.tickets.reset();
        self.native.store(1, Ordering::Release);
        self.dismissed.store(false, Ordering::Relaxed);
        self.has_steward.store(false, Ordering::Release);
    }

    /// Whether this process was forked since the presence was last [reset](Self::reset_in_child). A child of `vfork`, which
    /// only borrows the memory, is not meant: what it does, it does to its parent's.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.native.load(Ordering::Acquire) == 0
    }

    /// Says where the steward keeps its userfaultfds.
    pub fn publish_userfaults(&self, userfaults: &Userfaults) {
        for (place, fd) in self.userfaults.iter().zip(userfaults.descriptors()) {
            place.store(fd.as_raw_fd().unsigned_abs() + 1, Ordering::Release);
        }
    }

    /// Copies of the steward's userfaultfds in the table of the caller; needs Linux 6.9.
    #[must_use]
    pub fn borrow_userfaults(&self) -> Option<Userfaults> {
        let steward = Pid::from_raw(self.steward.load(Ordering::Acquire).cast_signed())?;
        let steward = pidfd_open(steward, PIDFD_THREAD).ok()?;
        let copy = |place: &AtomicU32| {
            let number = place.load(Ordering::Acquire).checked_sub(1)?;
            pidfd_getfd(&steward, number.cast_signed(), PidfdGetfdFlags::empty()).ok()
        };
        let [moving, protecting] = &self.userfaults;
        Some(Userfaults::from_descriptors([
            copy(moving)?,
            copy(protecting)?,
        ]))
    }

    /// Notes a fork that is about to be made. For the thread that forks, with the space locked.
    pub fn note_fork(&self) {
        let ledger = self.ledger.get();
        let [id, number] = &self.fork;
        id.store(ledger.id.load(Ordering::Relaxed), Ordering::Relaxed);
        number.store(
            ledger.forks.fetch_add(1, Ordering::AcqRel),
            Ordering::Relaxed,
        );
    }

    /// In a child just forked: says who it is, for the daemon to see whether it lives.
    fn note_birth(&self) {
        for (birth, fork) in self.birth.iter().zip(&self.fork) {
            birth.store(fork.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
        self.note_child(process_id());
    }

    /// In a child that has not joined, and will not: it execs or ends.
    pub fn note_death(&self) {
        self.note_child(GONE);
    }

    fn note_child(&self, id: u32) {
        let Birth { ledger, number } = self.birth();
        let place = (number % CHILDREN) as usize;
        if ledger != 0
            && ledger == self.ledger.get().id.load(Ordering::Relaxed)
            && let Some(child) = self.ledger.get().children.get(place)
        {
            child.store(id, Ordering::Release);
        }
    }

    /// The fork that this process came from, unless it has joined since.
    pub fn birth(&self) -> Birth {
        let [ledger, number] = &self.birth;
        Birth {
            ledger: ledger.load(Ordering::Relaxed),
            number: number.load(Ordering::Relaxed),
        }
    }

    /// The daemon has taken us in: forks are noted where it looks from now on.
    pub fn join(&self, donation: BorrowedFd<'_>) -> Result<(), Errno> {
        self.ledger.attach(donation)?;
        let [ledger, _] = &self.birth;
        ledger.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// For the steward of a child: waits for `childhood`, or until a thread of the child asks for something or the daemon
    /// wants to see every child.
    pub fn wait_out(&self, childhood: Duration) {
        let end = Instant::now() + childhood;
        let ledger = self.ledger.get();
        while Instant::now() < end
            && self.hurry.load(Ordering::Acquire) == 0
            && ledger.called.load(Ordering::Acquire) <= self.birth().number
        {
            // Whatever ends the wait early, starting early harms nobody.
            wait(&self.hurry, 0, Some(CALL));
        }
    }

    /// Says how an attempt to connect, or a connection, ended.
    pub fn say(&self, state: LinkState) {
        self.link.set(state);
        self.attempts.fetch_add(1, Ordering::Release);
        wake_all(&self.attempts);
    }

    /// Prepares for a connection that is not the first: nobody there knows what was said over another one.
    pub fn meet_daemon_again(&self) {
        while !self.space.on_reconnect() {}
    }

    /// Waits until somebody has tried to connect, but not for ever.
    pub fn wait_for_first_attempt(&self) {
        self.hurry.store(1, Ordering::Release);
        wake_all(&self.hurry);
        wait_until(&self.attempts, PATIENCE, |attempts| attempts != 0);
    }

    /// Has the agent send what is queued, and waits until it has; not for ever, and not at all without a daemon.
    pub fn announce(&self) {
        if self.link.get() == LinkState::Starting {
            self.wait_for_first_attempt();
        }
        if self.link.get() != LinkState::Connected {
            return;
        }
        let ticket = self.tickets.ask();
        let agent = self.agent.load(Ordering::Acquire).cast_signed();
        if let Some(agent) = Pid::from_raw(agent) {
            // If it is gone, the next one sends everything anyhow.
            let _ = kill_process(agent, WAKE);
        }
        self.tickets
            .wait_for(ticket, PATIENCE, || self.link.get() != LinkState::Connected);
    }
}

fn process_id() -> u32 {
    rustix::process::getpid().as_raw_pid().unsigned_abs()
}
