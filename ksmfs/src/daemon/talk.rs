//! What is said to a peer, and what its messages lead to.
//!
//! A peer is believed nothing: every message was checked when it was decoded, the engine checks each report against
//! its order, and whatever breaks the rules ends the connection. That costs the peer its merging, and nobody else
//! anything.

use super::adoption::Holdings;
use super::children::Children;
use super::donation::DonationBuffer;
use super::identity;
use super::outbox::SendError;
use super::peers::{Agent, Peer, Role};
use super::regions::Regions;
use super::turns::Turns;
use super::{Answer, Daemon, ENDED};
use ksm_engine::engine::{ReportError, Written};
use ksm_engine::order::{Order, OrderId};
use ksm_engine::page::{ArenaId, DomainId, UserId};
use ksm_engine::wire::{
    Birth, Figures, Hello, MessageBuffer, MountDevice, RefusalReason, ToAgent, ToDaemon, Version,
    Versions, WireError,
};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, OwnedFd};

/// Most separate regions of one agent: what a process with the kernel's default of 65530 maps can have.
const MOST_REGIONS: usize = 65_536;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum Parting {
    /// The peer hung up.
    #[error("it hung up")]
    HungUp,
    /// The app has ended.
    #[error("it has ended")]
    Ended,
    /// A message breaks the protocol.
    #[error("bad message: {0}")]
    Wire(#[from] WireError),
    /// A message longer than any of the protocol.
    #[error("message of {0} bytes")]
    TooLong(usize),
    /// A message that may not come at this point.
    #[error("message out of turn")]
    OutOfTurn,
    /// A report breaks the rules.
    #[error("{0}")]
    Report(#[from] ReportError),
    /// Descriptors with a message that carries none.
    #[error("descriptors that nobody asked for")]
    Descriptors,
    /// It says that it has more arenas mapped than a process can.
    #[error("too many arenas")]
    TooManyArenas,
    /// It was refused.
    #[error("refused: {0:?}")]
    Refused(RefusalReason),
    /// It could not be sent to.
    #[error("{0}")]
    Send(#[from] SendError),
    /// The socket failed.
    #[error("recv: {0}")]
    Receive(Errno),
    /// Its donation buffer could not be made.
    #[error("donation buffer: {0}")]
    Donation(Errno),
    /// An order names an arena that the store does not have.
    #[error("no descriptor of arena {0:?}")]
    NoArena(ArenaId),
}

impl Parting {
    /// Whether it is the ordinary end of a connection.
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::HungUp
                | Self::Ended
                | Self::Receive(Errno::CONNRESET)
                | Self::Send(SendError::Os(Errno::PIPE | Errno::CONNRESET))
        )
    }
}

impl Daemon {
    /// Acts on one message, which lies at the start of `buffer` and is `len` bytes long.
    pub(super) fn hear(
        &mut self,
        token: u64,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
        len: usize,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Parting> {
        let message = ToDaemon::decode(&buffer.0[..len]);
        if !matches!(message, Ok(ToDaemon::Holds { .. })) && !descriptors.is_empty() {
            descriptors.into_iter().for_each(|fd| self.closer.close(fd));
            return Err(Parting::Descriptors);
        }
        let message = message?;
        let version = Version::of(&buffer.0[..len]).unwrap_or(Versions::SPOKEN.oldest);
        match &peer.role {
            Role::Agent(_) if version != peer.outbox.version() => {
                descriptors.into_iter().for_each(|fd| self.closer.close(fd));
                return Err(WireError::Version(version.0).into());
            }
            Role::Agent(_) => {}
            // Answered as it was asked.
            _ => peer.outbox.speak(version),
        }
        match (&mut peer.role, message) {
            (Role::Surplus, _) => {
                descriptors.into_iter().for_each(|fd| self.closer.close(fd));
                self.refuse(peer, RefusalReason::TooMany, buffer)
            }
            (Role::Unknown, ToDaemon::Hello(hello)) => self.greet(token, peer, hello, buffer),
            (Role::Unknown | Role::Asking, ToDaemon::Query) => {
                peer.role = Role::Asking;
                self.tell_figures(token, peer, buffer)
            }
            (Role::Unknown | Role::Asking, ToDaemon::Locate) => {
                peer.role = Role::Asking;
                let message = ToAgent::Mount(MountDevice {
                    asker: peer.credentials.pid.as_raw_pid().unsigned_abs(),
                    ..self.mount
                });
                peer.outbox
                    .send(peer.socket.as_fd(), &message, &[], buffer)?;
                Ok(())
            }
            (Role::Unknown | Role::Asking, ToDaemon::Processes) => {
                self.tell_processes(peer, buffer)
            }
            (Role::Unknown | Role::Asking, ToDaemon::Scan) => self.want_scan(token, peer),
            (Role::Agent(agent), ToDaemon::Register { range }) => {
                let had = agent.regions.count();
                agent.regions.add(range);
                let has = agent.regions.count();
                let all = self.peers.count_regions(peer.credentials.uid, had, has);
                if has > MOST_REGIONS || all > self.quotas.regions {
                    return self.refuse_more(peer, RefusalReason::Regions, buffer);
                }
                self.engine.register(agent.mm, range);
                Ok(())
            }
            (Role::Agent(agent), ToDaemon::Unregister { range }) => {
                let had = agent.regions.count();
                agent.regions.remove(range);
                let has = agent.regions.count();
                self.peers.count_regions(peer.credentials.uid, had, has);
                self.engine.unregister(agent.mm, range);
                Ok(())
            }
            (Role::Agent(agent), ToDaemon::Mode { merges_any }) => {
                agent.merges_any = merges_any;
                Ok(())
            }
            (Role::Agent(_), ToDaemon::Holds { arenas }) => {
                let arenas = arenas.to_vec();
                self.note_held(peer, &arenas, descriptors, buffer)
            }
            (Role::Agent(agent), ToDaemon::AllSaid) => {
                self.note_joined(agent.birth);
                Ok(())
            }
            (Role::Agent(agent), ToDaemon::Report { order, report }) => {
                self.engine
                    .report(agent.mm, order, &report, &agent.donation)?;
                self.end_turn(token, &mut agent.turns, order);
                Ok(())
            }
            (Role::Unknown | Role::Asking | Role::Agent(_), _) => {
                descriptors.into_iter().for_each(|fd| self.closer.close(fd));
                Err(Parting::OutOfTurn)
            }
        }
    }

    /// Sends an order, with the arena that it is about.
    pub(super) fn give_order(
        &mut self,
        token: u64,
        peer: &mut Peer,
        id: OrderId,
        order: &Order,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        if self.withholds(token, peer, id, order) {
            return Ok(());
        }
        let arena = match order {
            Order::Map { arena, .. } | Order::Remap { arena, .. } => Some(*arena),
            _ => None,
        };
        let store = self.engine.store();
        let descriptor = arena
            .map(|arena| store.descriptor(arena).ok_or(Parting::NoArena(arena)))
            .transpose()?;
        if let (Some(arena), Role::Agent(agent)) = (arena, &mut peer.role)
            && peer.outbox.version().names_arenas()
        {
            agent.holdings.gets(arena);
        }
        let order = order.borrow();
        let message = ToAgent::Order { id, order };
        peer.outbox
            .send(peer.socket.as_fd(), &message, descriptor.as_slice(), buffer)?;
        Ok(())
    }

    fn greet(
        &mut self,
        token: u64,
        peer: &mut Peer,
        hello: Hello,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        let Some(version) = hello.versions.newest_in(self.versions) else {
            return self.refuse(peer, RefusalReason::Version, buffer);
        };
        peer.outbox.speak(version);
        let Some(app) = identity::app_pid(peer.credentials.pid, hello.pid) else {
            return self.refuse(peer, RefusalReason::WrongPid, buffer);
        };
        let uid = peer.credentials.uid;
        let domain = match self.domains.of_peer(peer.socket.as_fd(), uid, hello.label) {
            Ok(domain) => domain,
            Err(reason) => return self.refuse(peer, reason, buffer),
        };
        let Ok(end) = pidfd_open(app, PidfdFlags::empty()) else {
            return Err(Parting::Ended);
        };
        let ledger = self.next_ledger;
        self.next_ledger = ledger.checked_add(1).unwrap_or(1);
        let donation = DonationBuffer::new(ledger, UserId(uid)).map_err(Parting::Donation)?;
        let engine = &self.engine;
        let Some(domain) = self
            .domains
            .join(&domain, |number| engine.knows_domain(number))
        else {
            return self.refuse(peer, RefusalReason::TooMany, buffer);
        };
        let parent = self.peers.with_ledger(hello.birth.ledger, uid);
        // A child may have been moved, or have asked for another label.
        let parent = parent.filter(|parent| parent.domain == domain);
        let parent = parent.map(|parent| parent.mm);
        let added = match parent {
            Some(parent) => self.engine.add_child(domain, parent),
            None => self.engine.add_mm_of(domain, UserId(uid)),
        };
        let Some(mm) = added else {
            self.leave_domain(domain);
            return self.refuse(peer, RefusalReason::TooMany, buffer);
        };
        if !version.sums_up() {
            self.engine.ask_at_length(mm);
        }
        // From here on the end of the connection takes the mm away again.
        let salt = self.engine.salt(domain);
        let data = epoll::EventData::new_u64(token | ENDED);
        let watched = epoll::add(&self.epoll, &end, data, epoll::EventFlags::IN);
        peer.role = Role::Agent(Box::new(Agent {
            mm,
            domain,
            app,
            donation,
            turns: Turns::default(),
            ledger,
            birth: hello.birth,
            children: Children::default(),
            _end: end,
            regions: Regions::default(),
            merges_any: false,
            holdings: Holdings::default(),
        }));
        watched.map_err(SendError::from)?;
        let Role::Agent(agent) = &peer.role else {
            return Ok(());
        };
        let donation = agent.donation.descriptor();
        let uffd = self.uffd.as_ref().map(AsFd::as_fd);
        let both = [donation, uffd.unwrap_or(donation)];
        let descriptors = &both[..1 + usize::from(uffd.is_some())];
        let message = ToAgent::Welcome { salt };
        peer.outbox
            .send(peer.socket.as_fd(), &message, descriptors, buffer)?;
        log::debug!("pid {} of uid {} joined", app, peer.credentials.uid);
        Ok(())
    }

    /// A process that has joined a domain is not in it any more.
    pub(super) fn leave_domain(&mut self, domain: DomainId) {
        if self.domains.leave(domain) {
            self.engine.close_domain(domain);
        }
    }

    /// Whoever waits for a forked child waits for what the child has registered.
    fn note_joined(&mut self, birth: Birth) {
        for (_, agent) in self.peers.agents_mut() {
            if agent.ledger == birth.ledger {
                agent.children.joined(&agent.donation, birth.number);
            }
        }
    }

    fn refuse(
        &self,
        peer: &mut Peer,
        reason: RefusalReason,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        let message = ToAgent::Refused(reason.told_to(peer.outbox.version()));
        peer.outbox
            .send(peer.socket.as_fd(), &message, &[], buffer)?;
        Err(Parting::Refused(reason))
    }

    /// Ends the connection of one who was welcomed. Agents of older versions expect no refusal then.
    fn refuse_more(
        &self,
        peer: &mut Peer,
        reason: RefusalReason,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        if peer.outbox.version().knows_labels() {
            return self.refuse(peer, reason, buffer);
        }
        Err(Parting::Refused(reason))
    }

    /// Answers a query, perhaps only after a count.
    fn tell_figures(
        &mut self,
        token: u64,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        let of_app: Vec<_> = self.peers.of_app(peer.credentials.pid).collect();
        match self.engine.count_zero_pages(|mm| of_app.contains(&mm)) {
            Written::Pending(ticket) => {
                self.await_count(ticket, Answer::Figures(token));
                Ok(())
            }
            Written::Done => self.send_figures(peer, buffer),
        }
    }

    /// The figures of a process.
    pub(super) fn figures_of(&self, pid: Pid) -> Figures {
        let mut sum = Figures::default();
        for mm in self.peers.of_app(pid) {
            let figures = self.engine.figures(mm);
            sum.rmap_items += figures.rmap_items;
            sum.zero_pages += figures.zero_pages;
            sum.merging_pages += figures.merging_pages;
            sum.profit += figures.profit;
        }
        sum
    }

    pub(super) fn send_figures(
        &self,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        let sum = self.figures_of(peer.credentials.pid);
        peer.outbox
            .send(peer.socket.as_fd(), &ToAgent::Figures(sum), &[], buffer)?;
        Ok(())
    }
}
