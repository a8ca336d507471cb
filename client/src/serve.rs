//! The life of an agent: settles in, talks to the daemon, does as ordered, reconnects when the daemon goes away.
//!
//! It is a task of its own in the app's address space (see [`crate::sys::task`]). The app may stand still at any point,
//! with the lock of its heap held: nothing here may use the heap, a lock of the app or a logger, or panic.

mod handing_in;
mod telling;

use crate::agent::kept::Kept;
use crate::agent::{Agent, View};
use crate::desk::Desk;
use crate::link::{Link, Welcome};
use crate::link_state::LinkState;
use crate::presence::Presence;
use crate::steward::{Backoff, connect};
use crate::sys::loads;
use crate::sys::read::Reading;
use crate::sys::task::{self, HandedOver, TaskDuty};
use crate::sys::uffd::Userfaults;
use ksm_engine::digest::Salt;
use ksm_engine::order::OrderRef;
use ksm_engine::wire::{ToAgent, ToDaemon, Version};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use telling::{Telling, Told};

/// Lower than the app's, as ksmd's is.
const NICENESS: i32 = 5;
/// While the app holds the lock of what is to be sent it is looked again in such intervals.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// All that an agent needs to begin.
#[derive(Debug)]
pub struct Commission<'a> {
    /// What it shares with app and steward.
    pub presence: &'a Presence,
    /// The steward's thread, which it must not outlive.
    pub steward: Pid,
    /// Readable when the agent is to end.
    pub dismissal: &'a OwnedFd,
    /// The steward's userfaultfds.
    pub userfaults: &'a Userfaults,
    /// The address space as the kernel shows it.
    pub view: &'a View,
    /// A connection that has been greeted.
    pub socket: HandedOver,
    /// What is spoken there.
    pub version: Version,
    /// The donation buffer of that connection.
    pub donation: HandedOver,
    /// The salt of the present connection.
    pub salt: Salt,
    /// Room to work in.
    pub desk: &'a mut Desk,
}

/// What tells the agent to do something, or to end.
#[derive(Debug)]
struct Calls {
    /// Readable when an app thread wants something.
    wake: OwnedFd,
    /// Readable when the steward is no more.
    orphaned: OwnedFd,
    /// How this task may read.
    reading: Reading,
}

impl TaskDuty for Commission<'_> {
    fn run(&mut self) {
        // Whatever fails, the steward makes another agent after a while.
        if let Err(errno) = self.settle_in().and_then(|calls| self.serve(&calls)) {
            self.presence.say(LinkState::Failed(errno));
        }
    }
}

impl Commission<'_> {
    /// Makes the task a good guest.
    fn settle_in(&self) -> Result<Calls, Errno> {
        task::block_every_signal()?;
        // Ends with the steward's thread, and so with the app, and with its exec. Not if the app has lost the right to
        // signal us by then (it changed its user); that is why the thread is watched as well.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let app = Pid::from_raw(self.presence.app.load(Ordering::Acquire).cast_signed());
        let orphaned = task::end_of_thread(app.ok_or(Errno::SRCH)?, self.steward)?;
        // None of these is worth giving up for. Out of the app's session, signals to its process group do not stop
        // us; out of its directory, we keep no file system busy; without core dumps, our crash is no dump of the app.
        let _ = rustix::process::setsid();
        let _ = rustix::thread::set_name(c"ksm-agent");
        let _ = task::schedule_normally();
        let _ = rustix::process::nice(NICENESS);
        let _ = rustix::process::chdir(c"/");
        let no_dump = Rlimit {
            current: Some(1),
            maximum: Some(1),
        };
        let _ = rustix::process::setrlimit(Resource::Core, no_dump);
        let wake = task::wake_descriptor()?;
        // The steward will say so too, but perhaps not before an app thread wants to wake us.
        let myself = rustix::process::getpid().as_raw_pid().unsigned_abs();
        self.presence.agent.store(myself, Ordering::Release);
        let reading = loads::arm().map_or(Reading::Calls, Reading::Loads);
        Ok(Calls {
            wake,
            orphaned,
            reading,
        })
    }

    fn serve(&mut self, calls: &Calls) -> Result<(), Errno> {
        let mut link = Link::from_socket(self.socket.adopt(), self.version);
        let mut agent = self.agent(&self.donation.adopt(), self.salt, calls.reading)?;
        let mut kept = Kept::new();
        loop {
            self.presence.say(LinkState::Connected);
            let ended = self.converse(&link, &mut agent, &mut kept, calls);
            // The daemon is to see this end closed before another connection of ours comes.
            drop(link);
            self.presence.say(ended);
            let Some(connected) = self.reconnect(&mut kept, calls) else {
                return Ok(());
            };
            let welcome;
            (link, welcome) = connected;
            drop(agent);
            agent = self.agent(&welcome.donation, welcome.salt, calls.reading)?;
        }
    }

    fn agent(&self, donation: &OwnedFd, salt: Salt, reading: Reading) -> Result<Agent, Errno> {
        let userfaults = self.userfaults.try_clone()?;
        let app = self.presence.app.load(Ordering::Acquire);
        let (space, donation, view) = (
            self.presence.space,
            donation.as_fd(),
            self.view.try_clone()?,
        );
        let agent = Agent::with_view(space, userfaults, app, donation, salt, view);
        agent
            .map(|agent| agent.reading(reading))
            .map_err(|error| error.errno)
    }

    /// Whether the agent is to end.
    fn is_dismissed(&self, calls: &Calls) -> bool {
        let now = Timespec::default();
        let mut watched = [PollFd::new(&calls.orphaned, PollFlags::IN)];
        self.presence.dismissed.load(Ordering::Acquire) || poll(&mut watched, Some(&now)) == Ok(1)
    }

    /// Follows orders until the connection ends.
    fn converse(
        &mut self,
        link: &Link,
        agent: &mut Agent,
        kept: &mut Kept,
        calls: &Calls,
    ) -> LinkState {
        let mut telling = Telling::new(self.presence);
        let outgoing = &mut self.desk.outgoing;
        let first = handing_in::hand_in(self.presence.space, link, kept, outgoing)
            .and_then(|()| telling.tell_all(link, outgoing));
        if let Err(state) = first.and_then(|()| link.send(&ToDaemon::AllSaid, outgoing)) {
            return state;
        }
        loop {
            if self.is_dismissed(calls) {
                return LinkState::Starting;
            }
            let told = match telling.tell(link, &mut self.desk.outgoing) {
                Ok(told) => told,
                Err(state) => return state,
            };
            match self.follow(link, agent, kept) {
                Err(state) => return state,
                Ok(false) if told != Told::Some => {
                    handing_in::let_go_of_empty(self.presence.space, kept);
                }
                Ok(_) => continue,
            }
            let mut watched = [
                PollFd::new(link, PollFlags::IN),
                PollFd::new(&calls.wake, PollFlags::IN),
                PollFd::new(self.dismissal, PollFlags::IN),
                PollFd::new(&calls.orphaned, PollFlags::IN),
            ];
            let timeout = (told == Told::InTheWay).then_some(&LOOK);
            match poll(&mut watched, timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return LinkState::Failed(errno),
            }
            if watched[1].revents().contains(PollFlags::IN) {
                let mut signals = [0; 128];
                // Only empties it.
                let _ = rustix::io::read(&calls.wake, &mut signals);
            }
        }
    }

    /// Does what one message wants, if one is there.
    fn follow(
        &mut self,
        link: &Link,
        agent: &mut Agent,
        kept: &mut Kept,
    ) -> Result<bool, LinkState> {
        let Desk {
            incoming,
            outgoing,
            report,
        } = &mut *self.desk;
        let space = self.presence.space;
        let Some((message, [arena, _])) = link.receive(incoming)? else {
            return Ok(false);
        };
        let (id, order) = match message {
            ToAgent::Order { id, order } => (id, order),
            ToAgent::Named { names } => {
                handing_in::take_names(space, names);
                return Ok(true);
            }
            ToAgent::Keep { arena: name } => {
                handing_in::keep(space, kept, name, arena);
                return Ok(true);
            }
            ToAgent::LetGo { arenas } => {
                handing_in::let_go(space, kept, arenas);
                return Ok(true);
            }
            ToAgent::Refused(reason) => return Err(LinkState::Refused(reason)),
            _ => return Err(LinkState::Protocol),
        };
        let report = agent.handle(&order, arena.as_ref().map(AsFd::as_fd), report);
        // First: the daemon may be gone.
        if let OrderRef::Map { arena: name, .. } | OrderRef::Remap { arena: name, .. } = order {
            handing_in::keep(space, kept, name, arena);
        }
        link.send(&ToDaemon::Report { order: id, report }, outgoing)?;
        Ok(true)
    }

    /// Tries until a daemon answers; gives up when dismissed.
    fn reconnect(&mut self, kept: &mut Kept, calls: &Calls) -> Option<(Link, Welcome)> {
        let mut backoff = Backoff::default();
        while !self.is_dismissed(calls) {
            backoff.pause();
            handing_in::let_go(self.presence.space, kept, &[]);
            match connect(self.presence, &mut self.desk.incoming) {
                Ok((link, welcome)) => {
                    self.presence.meet_daemon_again();
                    return Some((link, welcome));
                }
                Err(state) => self.presence.say(state),
            }
        }
        None
    }
}
