//! The steward: the thread of the app that makes the agent, and another one should it die.
//!
//! It keeps the userfaultfds open. While an agent holds a page of the app, a killed agent must not be the last owner of
//! them: the kernel would wake whoever waits for the page, to find a hole. So the steward has a copy, finishes what
//! a dead agent held, and starts the next one. Its descriptors are in a table of its own, out of reach of an app that
//! closes everything it does not know, and out of its limit.

use crate::agent::View;
use crate::desk::Desk;
use crate::link::{Link, Welcome};
use crate::link_state::LinkState;
use crate::presence::Presence;
use crate::serve::Commission;
use crate::sys::task::{self, ThreadDuty, hand_over, run_task};
use crate::sys::uffd::Userfaults;
use ksm_engine::wire::{Hello, MessageBuffer};
use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags, Timespec};
use rustix::io::Errno;
use rustix::thread::gettid;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A forked child that does not live this long was about to exec, and needs no steward's work.
const CHILDHOOD: Duration = Duration::from_millis(50);
/// An agent that dies before this age is not replaced at once.
const HEALTHY: Duration = Duration::from_secs(10);

/// Pauses between attempts, that grow.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// Waits: 50 ms the first time, 1 s at most.
    pub fn pause(&mut self) {
        let milliseconds = (50_u64 << self.0.min(5)).min(1000);
        self.0 += 1;
        sleep(Duration::from_millis(milliseconds));
    }
}

/// Waits without the standard library, which looks into thread-local storage.
fn sleep(time: Duration) {
    let Ok(mut left) = Timespec::try_from(time) else {
        return;
    };
    while let rustix::thread::NanosleepRelativeResult::Interrupted(rest) =
        rustix::thread::nanosleep(&left)
    {
        left = rest;
    }
}

/// Connects to the first daemon that takes us.
pub fn connect(
    presence: &Presence,
    buffer: &mut MessageBuffer,
) -> Result<(Link, Welcome), LinkState> {
    let hello = Hello {
        pid: presence.app.load(Ordering::Acquire),
        parent: presence.parent.load(Ordering::Acquire),
        birth: presence.birth(),
        versions: presence.versions,
        label: presence.label,
    };
    let mut why = LinkState::NoDaemon(Errno::NOENT);
    for address in presence.addresses.iter().flatten() {
        let attempt = Link::connect(address).and_then(|mut link| {
            let welcome = link.greet(hello, buffer)?;
            let joined = presence.join(welcome.donation.as_fd());
            joined.map_err(LinkState::Failed)?;
            Ok((link, welcome))
        });
        match attempt {
            // A path that nobody listens at says less than a daemon that turns us away.
            Err(LinkState::NoDaemon(_)) if !matches!(why, LinkState::NoDaemon(_)) => {}
            Err(state) => why = state,
            Ok(connected) => return Ok(connected),
        }
    }
    Err(why)
}

impl ThreadDuty for Presence {
    fn run(&self) {
        if self.parent.load(Ordering::Acquire) != 0 {
            self.wait_out(CHILDHOOD);
        }
        let mut backoff = Backoff::default();
        loop {
            match Steward::settle_in(self) {
                Ok(mut steward) => steward.work(),
                Err(errno) => self.say(LinkState::Failed(errno)),
            }
            backoff.pause();
        }
    }
}

struct Steward<'a> {
    presence: &'a Presence,
    /// Readable when the agent is to end.
    dismissal: OwnedFd,
    desk: &'a mut Desk,
    userfaults: Option<Userfaults>,
    /// Opened early: the app may change its user.
    view: View,
    /// Whether any daemon has known this process.
    has_met_daemon: bool,
}

impl<'a> Steward<'a> {
    fn settle_in(presence: &'a Presence) -> Result<Self, Errno> {
        task::leave_descriptors()?;
        // Nobody should take the numbers 0 to 2, where libraries write what went wrong.
        for _ in 0..3 {
            let placeholder = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
            std::mem::forget(placeholder);
        }
        presence
            .steward
            .store(gettid().as_raw_pid().unsigned_abs(), Ordering::Release);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let dismissal = rustix::event::eventfd(0, flags)?;
        let view = View::open()?;
        // Last: it is to be had once.
        let desk = presence.desk.take().ok_or(Errno::BUSY)?;
        Ok(Self {
            presence,
            dismissal,
            desk,
            userfaults: None,
            view,
            has_met_daemon: false,
        })
    }

    fn work(&mut self) -> ! {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            if let Err(state) = self.employ() {
                self.presence.say(state);
            }
            if began.elapsed() > HEALTHY {
                backoff = Backoff::default();
            }
            backoff.pause();
        }
    }

    /// Connects, makes an agent, and cleans up after it.
    fn employ(&mut self) -> Result<(), LinkState> {
        let (link, welcome) = connect(self.presence, &mut self.desk.incoming)?;
        let userfaults = match self.userfaults.take() {
            Some(userfaults) => userfaults,
            None => make_userfaults(welcome.device)?,
        };
        self.presence.publish_userfaults(&userfaults);
        let userfaults = self.userfaults.insert(userfaults);
        if std::mem::replace(&mut self.has_met_daemon, true) {
            self.presence.meet_daemon_again();
        }
        let version = link.version();
        let (socket, socket_behind) = hand_over(link.into_socket());
        let (donation, donation_behind) = hand_over(welcome.donation);
        let mut commission = Commission {
            presence: self.presence,
            steward: gettid(),
            dismissal: &self.dismissal,
            userfaults,
            view: &self.view,
            socket,
            version,
            donation,
            salt: welcome.salt,
            desk: self.desk,
        };
        let left_behind = [socket_behind, donation_behind];
        let stack = self.presence.agent_stack;
        let dismiss = || {
            self.presence.dismissed.store(true, Ordering::Release);
            let _ = rustix::io::write(&self.dismissal, &1_u64.to_ne_bytes());
        };
        let pid = &self.presence.agent;
        let ended = run_task(stack, &mut commission, left_behind, pid, dismiss);
        self.presence.space.recover(userfaults);
        self.presence.dismissed.store(false, Ordering::Release);
        let _ = rustix::io::read(&self.dismissal, &mut [0; 8]);
        ended.map_err(LinkState::Failed)?;
        self.presence.say(LinkState::NoDaemon(Errno::CONNRESET));
        Ok(())
    }
}

fn make_userfaults(device: Option<OwnedFd>) -> Result<Userfaults, LinkState> {
    open_userfaults(device).map_err(|errno| match errno {
        Errno::PERM | Errno::NOSYS | Errno::ACCESS => LinkState::NoUserfaultfd(errno),
        Errno::INVAL => LinkState::OldKernel,
        _ => LinkState::Failed(errno),
    })
}

/// Makes the userfaultfds of this address space: through the daemon's device, through our own, by the system call.
pub fn open_userfaults(device: Option<OwnedFd>) -> Result<Userfaults, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device =
        device.or_else(|| rustix::fs::open(c"/dev/userfaultfd", flags, Mode::empty()).ok());
    Userfaults::new(device.as_ref().map(AsFd::as_fd))
}
