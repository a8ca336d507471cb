//! The thread that owns the engine: all peers, all timers, all values.
//!
//! It waits in one place (`epoll`) for connections, messages and requests, never blocks anywhere else, and needs no
//! lock. Whoever writes a knob after a region was registered finds it registered: requests are taken first, then the
//! peers are heard until they are quiet, then the requests are served.

mod adoption;
mod aside;
mod children;
mod chores;
mod domains;
mod donation;
mod identity;
mod inquiries;
mod listener;
mod outbox;
mod peers;
mod regions;
mod sys;
mod talk;
mod turns;

use crate::bell::Bell;
use crate::mailbox::{Inbox, ProcessReply, ReadReply, Request, WriteReply};
use crate::policy::Policy;
use crate::quotas::Quotas;
use aside::{Closer, Sealer};
use domains::Domains;
use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::{Engine, Extras, Ticket, Written};
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::page::UserId;
use ksm_engine::process_file::ProcessFile;
use ksm_engine::wire::{MAX_MESSAGE, MessageBuffer, MountDevice, Versions};
use outbox::Outbox;
use peers::{Peer, Peers, Role};
use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown};
use rustix::process::Pid;
use rustix::time::ClockId;
use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use talk::Parting;

pub use listener::{Listener, SocketError};

const LISTENER: u64 = 0;
const INBOX: u64 = 1;
const SEALED: u64 = 2;
const EMPTIED: u64 = 3;
const FIRST_PEER: u64 = 4;
/// The most descriptors that the kernel lets a message carry.
const MOST_DESCRIPTORS: usize = 253;
/// In the token of what becomes readable when a peer's app has ended.
const ENDED: u64 = 1 << 63;

/// Messages of one peer that are heard before it is the next peer's turn.
const MESSAGES_PER_TURN: usize = 16;
/// And of all peers of one user: however many they are, others have their turn.
const MESSAGES_OF_USER: usize = 256;
/// How long zero pages are counted before a reader gets the number last known.
const COUNT_PATIENCE: Duration = Duration::from_millis(500);
/// Rounds of hearing all peers before a request is served, even if they never fall quiet.
const ROUNDS_BEFORE_REQUEST: usize = 64;
/// Connections taken in one turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Events fetched in one call.
const EVENTS: usize = 128;
/// How long no connection is taken after the system had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The longest wait, for the sake of the timer's range only.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The daemon's state. Made in one thread, run in another.
pub struct Daemon {
    engine: Engine<MemfdStore>,
    started: Instant,
    epoll: OwnedFd,
    listener: Listener,
    inbox: Inbox,
    peers: Peers,
    closer: Closer,
    sealer: Sealer,
    /// Somebody is to be sent descriptors to keep.
    descriptors_are_due: bool,
    domains: Domains,
    /// `/dev/userfaultfd`, to pass on.
    uffd: Option<OwnedFd>,
    /// Where its files are.
    mount: MountDevice,
    quotas: Quotas,
    /// The versions of the protocol that are spoken.
    versions: Versions,
    /// Requests that wait for children to join.
    requests: VecDeque<Request>,
    /// Writers that wait for the end of an unmerge.
    writers: HashMap<Ticket, WriteReply>,
    /// Connections that want a full scan.
    scans_wanted: Vec<u64>,
    /// Connections that wait for the end of a full scan.
    scanners: HashMap<Ticket, u64>,
    /// Readers that wait for a count.
    readers: Vec<Reader>,
    /// Until when children of whom that are about to join are waited for.
    held: Option<(Duration, UserId)>,
    /// When time was last noted.
    noted: Duration,
    /// When to look at the donation buffers that are in use, and whose they are.
    donated: VecDeque<(Duration, u64)>,
    /// Rung when one was emptied.
    emptied: Bell,
    /// Who has an order that waits for that.
    withheld: Vec<u64>,
    next_ledger: u32,
    /// While set, no connections are taken.
    accept_again: Option<Duration>,
}

/// Somebody who waits until zero pages are counted.
struct Reader {
    ticket: Ticket,
    due: Duration,
    answer: Answer,
}

/// What he waits for.
enum Answer {
    /// The text of a file.
    Text(KsmFile, ReadReply),
    /// The figures of the process at a connection.
    Figures(u64),
    /// The text of a file of a process.
    Process(Pid, ProcessFile, ProcessReply),
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("listener", &self.listener)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// A daemon with the kernel's default values, of which each user may have so much.
    ///
    /// # Errors
    /// When the system has no epoll descriptor or no random bytes for it.
    pub fn new(
        listener: Listener,
        inbox: Inbox,
        uffd: Option<OwnedFd>,
        quotas: Quotas,
    ) -> Result<Self, Errno> {
        let mut secret = [0; 32];
        let got = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
        if got != secret.len() {
            return Err(Errno::IO);
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let token = epoll::EventData::new_u64;
        epoll::add(&epoll, &listener, token(LISTENER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, inbox.wake(), token(INBOX), epoll::EventFlags::IN)?;
        let sealer = Sealer::new()?;
        epoll::add(&epoll, sealer.ready(), token(SEALED), epoll::EventFlags::IN)?;
        let emptied = Bell::new()?;
        epoll::add(&epoll, &emptied, token(EMPTIED), epoll::EventFlags::IN)?;
        let mut engine = Engine::new(MemfdStore::new(), secret);
        engine.set_quotas(quotas.of_engine());
        Ok(Self {
            engine,
            started: Instant::now(),
            epoll,
            listener,
            inbox,
            peers: Peers::new(FIRST_PEER),
            domains: Domains::new(Policy::default()),
            closer: Closer::new(),
            sealer,
            descriptors_are_due: false,
            uffd,
            mount: MountDevice::default(),
            quotas,
            versions: Versions::SPOKEN,
            requests: VecDeque::new(),
            writers: HashMap::new(),
            scans_wanted: Vec::new(),
            scanners: HashMap::new(),
            readers: Vec::new(),
            held: None,
            noted: Duration::ZERO,
            donated: VecDeque::new(),
            emptied,
            withheld: Vec::new(),
            next_ledger: 1,
            accept_again: None,
        })
    }

    /// Sets a value before anybody can see the old one.
    ///
    /// # Errors
    /// As the file would answer.
    pub fn preset(&mut self, file: KsmFile, value: &str) -> Result<(), WriteError> {
        self.engine.write(file, value.as_bytes()).map(|_| ())
    }

    /// Turns on what the kernel does not do.
    pub fn set_extras(&mut self, extras: Extras) {
        self.engine.set_extras(extras);
    }

    /// Has it speak these versions of the protocol only.
    pub fn set_versions(&mut self, versions: Versions) {
        self.versions = versions;
    }

    /// Says who may have pages in common. Before the first peer connects.
    pub fn set_policy(&mut self, policy: Policy) {
        self.domains = Domains::new(policy);
    }

    /// States where its files are, for those who ask.
    pub fn set_mount(&mut self, device: MountDevice) {
        self.mount = device;
    }

    /// Runs until [`Request::Stop`].
    pub fn run(mut self) {
        let mut buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
        let mut trimmer = sys::Trimmer::new();
        loop {
            let ready = self.wait(self.patience());
            self.note_time();
            let posted = ready.contains(&INBOX);
            if posted {
                self.requests.extend(self.inbox.take());
            }
            self.hear_all(&ready, &mut buffer);
            if posted || !self.scans_wanted.is_empty() {
                self.hear_until_quiet(&mut buffer);
            }
            if self
                .requests
                .iter()
                .any(|request| matches!(request, Request::Stop))
            {
                return self.stop();
            }
            self.wait_for_children();
            while self.held.is_none()
                && let Some(request) = self.requests.pop_front()
            {
                self.serve(request);
            }
            for token in std::mem::take(&mut self.scans_wanted) {
                self.with_peer(token, |daemon, peer| {
                    daemon.scan_for(token, peer, &mut buffer)
                });
            }
            if let Ok(cpu) = rustix::time::clock_gettime(ClockId::ProcessCPUTime).try_into() {
                self.engine.set_cpu_time(cpu);
            }
            self.engine.advance(self.started.elapsed());
            self.send_orders(&mut buffer);
            self.tell_of_released(&mut buffer);
            self.send_what_is_to_keep(&mut buffer);
            self.answer_waiting(&mut buffer);
            self.free_buffers();
            trimmer.trim(self.engine.full_scans());
        }
    }

    /// Whoever acts after a fork finds the child there: before a request is served or a batch begins, children that have
    /// not joined yet get the chance to.
    fn wait_for_children(&mut self) {
        let now = self.started.elapsed();
        let needed = !self.requests.is_empty() || self.engine.is_batch_due(now);
        self.held = if needed {
            let agents = self.peers.agents_mut();
            agents
                .filter(|(user, _)| self.engine.has_patience_with(*user))
                .filter_map(|(user, agent)| {
                    let until = agent.children.expect(&agent.donation, now)?;
                    Some((until, user))
                })
                .min()
        } else {
            None
        };
        self.engine.hold(self.held.is_some());
    }

    /// The time until now was spent waiting, for an order or for a child.
    fn note_time(&mut self) {
        let now = self.started.elapsed();
        let passed = now.saturating_sub(self.noted);
        self.noted = now;
        self.engine.note_time(now);
        if let Some((_, user)) = self.held {
            self.engine.charge_waiting(user, passed);
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Read { file, reply } => {
                let is_live = matches!(file, KsmFile::ZeroPages | KsmFile::GeneralProfit);
                match is_live.then(|| self.engine.count_zero_pages(|_| true)) {
                    Some(Written::Pending(ticket)) => {
                        self.await_count(ticket, Answer::Text(file, reply));
                    }
                    Some(Written::Done) | None => reply(&self.engine.read(file)),
                }
            }
            Request::Write { file, value, reply } => self.write(file, &value, reply),
            Request::FindProcess { pid, reply } => {
                let process = process_id(pid).and_then(|pid| self.peers.process(pid));
                reply(process.map(|(uid, _, _)| uid));
            }
            Request::ReadProcess { pid, file, reply } => self.read_process(pid, file, reply),
            // Served before all others.
            Request::Stop => {}
        }
    }

    fn read_process(&mut self, pid: u32, file: ProcessFile, reply: ProcessReply) {
        let Some(pid) = process_id(pid) else {
            return reply(None);
        };
        let mms: Vec<_> = self.peers.of_app(pid).collect();
        match self.engine.count_zero_pages(|mm| mms.contains(&mm)) {
            Written::Pending(ticket) => self.await_count(ticket, Answer::Process(pid, file, reply)),
            Written::Done => reply(self.process_text(pid, file).as_deref()),
        }
    }

    fn process_text(&self, pid: Pid, file: ProcessFile) -> Option<String> {
        let (_, merges_any, is_mergeable) = self.peers.process(pid)?;
        Some(file.text(&self.figures_of(pid), merges_any, is_mergeable))
    }

    fn await_count(&mut self, ticket: Ticket, answer: Answer) {
        self.readers.push(Reader {
            ticket,
            due: self.started.elapsed() + COUNT_PATIENCE,
            answer,
        });
    }

    fn write(&mut self, file: KsmFile, value: &[u8], reply: WriteReply) {
        match self.engine.write(file, value) {
            Ok(Written::Done) => reply(Ok(())),
            Ok(Written::Pending(ticket)) => {
                self.writers.insert(ticket, reply);
            }
            Err(error) => reply(Err(error.errno())),
        }
    }

    fn answer_waiting(&mut self, buffer: &mut MessageBuffer) {
        while let Some((ticket, outcome)) = self.engine.take_finished() {
            if let Some(reply) = self.writers.remove(&ticket) {
                reply(outcome.map_err(WriteError::errno));
            }
            if let Some(token) = self.scanners.remove(&ticket) {
                self.with_peer(token, |daemon, peer| daemon.tell_scanned(peer, buffer));
            }
            for reader in &mut self.readers {
                if reader.ticket == ticket {
                    reader.due = Duration::ZERO;
                }
            }
        }
        let now = self.started.elapsed();
        let (ready, waiting) = std::mem::take(&mut self.readers)
            .into_iter()
            .partition::<Vec<_>, _>(|reader| reader.due <= now);
        self.readers = waiting;
        for reader in ready {
            match reader.answer {
                Answer::Text(file, reply) => reply(&self.engine.read(file)),
                Answer::Process(pid, file, reply) => {
                    reply(self.process_text(pid, file).as_deref());
                }
                Answer::Figures(token) => {
                    self.with_peer(token, |daemon, peer| daemon.send_figures(peer, buffer));
                }
            }
        }
    }

    fn stop(mut self) {
        for (_, reply) in self.writers.drain() {
            reply(Err(Errno::INTR));
        }
        for peer in self.peers.drain() {
            self.closer.close(peer.socket);
        }
        log::debug!("the engine's thread ends");
    }

    /// How long nothing has to be done unless something arrives.
    fn patience(&self) -> Duration {
        let count = self.readers.iter().map(|reader| reader.due).min();
        let due = [
            self.engine.wake_at(),
            self.accept_again,
            self.held.map(|(until, _)| until),
            self.donated.front().map(|(due, _)| *due),
            count,
        ];
        let next = due.into_iter().flatten().min();
        next.map_or(LONGEST_WAIT, |at| at.saturating_sub(self.started.elapsed()))
            .min(LONGEST_WAIT)
    }

    /// Waits for something to happen; the tokens of where it did.
    fn wait(&self, patience: Duration) -> Vec<u64> {
        let timeout = Timespec::try_from(patience).expect("an hour fits");
        let mut events = Vec::with_capacity(EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => log::error!("epoll_wait: {errno}"),
        }
        events.iter().map(|event| event.data.u64()).collect()
    }

    fn hear_until_quiet(&mut self, buffer: &mut MessageBuffer) {
        for _ in 0..ROUNDS_BEFORE_REQUEST {
            let mut ready = self.wait(Duration::ZERO);
            ready.retain(|token| *token != INBOX);
            if ready.is_empty() {
                break;
            }
            self.hear_all(&ready, buffer);
        }
    }

    fn hear_all(&mut self, ready: &[u64], buffer: &mut MessageBuffer) {
        if self
            .accept_again
            .is_some_and(|at| at <= self.started.elapsed())
        {
            self.resume_accepting();
        }
        let mut heard: HashMap<u32, usize> = HashMap::new();
        for token in ready {
            match *token {
                LISTENER => self.accept(),
                INBOX => {}
                SEALED => self.adopt_sealed(buffer),
                EMPTIED => self.give_withheld(buffer),
                token if token & ENDED != 0 => {
                    self.with_peer(token & !ENDED, |_, _| Err(Parting::Ended));
                }
                token => self.with_peer(token, |daemon, peer| {
                    peer.outbox.flush(peer.socket.as_fd())?;
                    let heard = heard.entry(peer.credentials.uid).or_default();
                    daemon.hear_peer(token, peer, buffer, heard)
                }),
            }
        }
    }

    fn hear_peer(
        &mut self,
        token: u64,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
        heard: &mut usize,
    ) -> Result<(), Parting> {
        for _ in 0..MESSAGES_PER_TURN {
            // The rest comes with the next turn.
            if *heard >= MESSAGES_OF_USER {
                break;
            }
            *heard += 1;
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC | RecvFlags::CMSG_CLOEXEC;
            // Room for all that can come: what does not find any is closed by the kernel, in this thread.
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer.0)];
            let received = rustix::net::recvmsg(&peer.socket, &mut parts, &mut control, flags);
            let descriptors: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                    _ => None,
                })
                .flatten()
                .collect();
            match received.map(|message| message.bytes) {
                Ok(0) => {
                    descriptors.into_iter().for_each(|fd| self.closer.close(fd));
                    return Err(Parting::HungUp);
                }
                Ok(len) if len > MAX_MESSAGE => {
                    descriptors.into_iter().for_each(|fd| self.closer.close(fd));
                    return Err(Parting::TooLong(len));
                }
                Ok(len) => self.hear(token, peer, buffer, len, descriptors)?,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Parting::Receive(errno)),
            }
        }
        Ok(())
    }

    fn send_orders(&mut self, buffer: &mut MessageBuffer) {
        while let Some((mm, id, order)) = self.engine.take_order() {
            if let Some(token) = self.peers.agent_of(mm) {
                self.with_peer(token, |daemon, peer| {
                    daemon.give_order(token, peer, id, &order, buffer)
                });
            }
        }
    }

    /// Lets `act` work with a peer, and ends the connection if it says so.
    fn with_peer(
        &mut self,
        token: u64,
        act: impl FnOnce(&mut Self, &mut Peer) -> Result<(), Parting>,
    ) {
        let Some(mut peer) = self.peers.take(token) else {
            return;
        };
        let outcome = act(self, &mut peer).and_then(|()| self.watch_for_room(token, &mut peer));
        match outcome {
            Ok(()) => self.peers.put_back(token, peer),
            Err(parting) => self.part(peer, &parting),
        }
    }

    fn part(&mut self, peer: Peer, parting: &Parting) {
        let who = &peer.credentials;
        let level = if parting.is_ordinary() {
            log::Level::Debug
        } else {
            log::Level::Warn
        };
        log::log!(
            level,
            "pid {} of uid {}: {parting}: connection closed",
            who.pid,
            who.uid
        );
        self.peers.forget(&peer);
        if let Role::Agent(agent) = &peer.role {
            self.engine.remove_mm(agent.mm);
            self.leave_domain(agent.domain);
        }
        // The peer sees the end at once. What it has sent and nobody has read may hold descriptors.
        let _ = epoll::delete(&self.epoll, &peer.socket);
        let _ = rustix::net::shutdown(&peer.socket, Shutdown::Both);
        self.closer.close(peer.socket);
    }

    /// Asks the event loop for room in the socket if, and only if, messages wait for it.
    fn watch_for_room(&self, token: u64, peer: &mut Peer) -> Result<(), Parting> {
        let waits = !peer.outbox.is_empty();
        if waits != peer.waits_for_room {
            let mut events = epoll::EventFlags::IN;
            events.set(epoll::EventFlags::OUT, waits);
            let data = epoll::EventData::new_u64(token);
            epoll::modify(&self.epoll, &peer.socket, data, events)
                .map_err(outbox::SendError::from)?;
            peer.waits_for_room = waits;
        }
        Ok(())
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let socket = match self.listener.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(errno) => {
                    log::warn!("a process cannot join now: accept: {errno}");
                    return self.pause_accepting();
                }
            };
            if let Err(errno) = self.admit(socket) {
                log::warn!("a process cannot join: {errno}");
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> Result<(), Errno> {
        let credentials = match identity::credentials(socket.as_fd()) {
            Ok(credentials) => credentials,
            Err(errno) => {
                self.closer.close(socket);
                return Err(errno);
            }
        };
        let present = self.peers.of_user(credentials.uid);
        let role = if present < self.quotas.peers {
            Role::Unknown
        } else if present < 2 * self.quotas.peers {
            // Hanging up on it before it has said anything would look like a broken daemon.
            Role::Surplus
        } else {
            self.closer.close(socket);
            return Err(Errno::USERS);
        };
        let token = self.peers.new_token();
        let data = epoll::EventData::new_u64(token);
        if let Err(errno) = epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN) {
            self.closer.close(socket);
            return Err(errno);
        }
        let peer = Peer {
            socket,
            credentials,
            role,
            outbox: Outbox::default(),
            waits_for_room: false,
        };
        self.peers.add(token, peer);
        Ok(())
    }

    /// Without descriptors the listening socket would stay ready, and the loop would spin.
    fn pause_accepting(&mut self) {
        if epoll::delete(&self.epoll, &self.listener).is_ok() {
            self.accept_again = Some(self.started.elapsed() + ACCEPT_PAUSE);
        }
    }

    fn resume_accepting(&mut self) {
        let data = epoll::EventData::new_u64(LISTENER);
        match epoll::add(&self.epoll, &self.listener, data, epoll::EventFlags::IN) {
            Ok(()) => self.accept_again = None,
            Err(_) => self.accept_again = Some(self.started.elapsed() + ACCEPT_PAUSE),
        }
    }
}

fn process_id(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}
