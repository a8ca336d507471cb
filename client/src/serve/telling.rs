//! Telling the daemon what is registered, some of it at a time: orders are to be followed however fast an app registers.

use crate::link::Link;
use crate::link_state::LinkState;
use crate::presence::Presence;
use crate::space::notices::{Mark, Next, Notice};
use ksm_engine::wire::{MessageBuffer, ToDaemon};
use std::sync::atomic::Ordering;

/// Notices that are sent before the next order.
const AT_ONCE: usize = 64;

/// How much has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All that there was.
    All,
    /// Some, and there may be more.
    Some,
    /// The app is in the way.
    InTheWay,
}

/// What is told over one connection.
#[derive(Debug)]
pub(super) struct Telling<'a> {
    presence: &'a Presence,
    told_merges_any: bool,
    /// Under way.
    pass: Option<Pass>,
}

/// What was queued when it began is told, and then those who asked for that by then can go on.
#[derive(Clone, Copy, Debug)]
struct Pass {
    asked: u32,
    until: Mark,
}

impl<'a> Telling<'a> {
    pub(super) fn new(presence: &'a Presence) -> Self {
        Self {
            presence,
            told_merges_any: false,
            pass: None,
        }
    }

    /// Tells some of what is queued.
    pub(super) fn tell(
        &mut self,
        link: &Link,
        outgoing: &mut MessageBuffer,
    ) -> Result<Told, LinkState> {
        let begins = self.pass.is_none();
        let Some(pass) = self.pass.or_else(|| self.begin()) else {
            return Ok(Told::InTheWay);
        };
        self.pass = Some(pass);
        let merges_any = self.presence.merges_any.load(Ordering::Acquire);
        if merges_any != self.told_merges_any {
            link.send(&ToDaemon::Mode { merges_any }, outgoing)?;
            self.told_merges_any = merges_any;
        }
        for told in 0..AT_ONCE {
            let message = match self.presence.space.next_notice(pass.until) {
                Next::Notice(Notice::Register(range)) => ToDaemon::Register { range },
                Next::Notice(Notice::Unregister(range)) => ToDaemon::Unregister { range },
                Next::InTheWay => return Ok(Told::InTheWay),
                Next::Nothing => {
                    self.presence.tickets.answer(pass.asked);
                    self.pass = None;
                    // What came since is for the next pass.
                    let nothing = begins && told == 0;
                    return Ok(if nothing { Told::All } else { Told::Some });
                }
            };
            link.send(&message, outgoing)?;
        }
        Ok(Told::Some)
    }

    /// Tells all that is queued by now, unless the app is in the way.
    pub(super) fn tell_all(
        &mut self,
        link: &Link,
        outgoing: &mut MessageBuffer,
    ) -> Result<(), LinkState> {
        while self.tell(link, outgoing)? == Told::Some && self.pass.is_some() {}
        Ok(())
    }

    /// The requests are counted first: who asks has queued before.
    fn begin(&self) -> Option<Pass> {
        let asked = self.presence.tickets.asked();
        let until = self.presence.space.end_of_notices()?;
        Some(Pass { asked, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Space;
    use crate::sys::memory::Placed;
    use ksm_engine::page::PageRun;
    use ksm_engine::wire::{Label, Versions};
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
    use std::cell::Cell;
    use std::time::Duration;

    fn register(space: &Space, first: u64, count: u64) {
        for at in first..first + count {
            let run = PageRun {
                start: 0x1000 + 2 * at,
                len: 1,
            };
            space.register(run).expect("room");
        }
    }

    fn is_answered(presence: &Presence, ticket: u32) -> bool {
        let looked = Cell::new(false);
        presence.tickets.wait_for(ticket, Duration::ZERO, || {
            looked.set(true);
            true
        });
        // What would make waiting vain is looked at only where there is something to wait for.
        !looked.get()
    }

    #[test]
    fn however_fast_an_app_registers_orders_come_between_and_whoever_waits_goes_on() {
        const BACKLOG: u64 = 300;
        let space = Space::create().expect("memory");
        let addresses = [None, None];
        let presence =
            Presence::new(space, addresses, Versions::SPOKEN, Label::default()).expect("memory");
        let (ours, daemons) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("sockets");
        let link = Link::from_socket(ours, Versions::SPOKEN.newest);
        let mut outgoing = Placed::<MessageBuffer>::new().expect("memory");
        register(space, 0, BACKLOG);
        let ticket = presence.tickets.ask();
        let mut telling = Telling::new(&presence);
        for turn in 0.. {
            assert_ne!(telling.tell(&link, &mut outgoing), Ok(Told::InTheWay));
            let mut heard = 0;
            while rustix::net::recv(&daemons, &mut [0; 4096][..], RecvFlags::DONTWAIT).is_ok() {
                heard += 1;
            }
            assert!(heard <= 100, "{heard} notices before any order");
            if is_answered(&presence, ticket) {
                assert!(turn > 1, "before all was told");
                break;
            }
            assert!(turn < 20, "whoever waits is never told");
            // As much as was told comes in again.
            register(space, BACKLOG + 64 * turn, 64);
        }
    }
}
