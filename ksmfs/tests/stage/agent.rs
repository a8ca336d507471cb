//! An agent that speaks the protocol and owns no memory: the test decides what it reports.
//!
//! Also part of the testsuite's `hostile_peers`.
#![allow(dead_code, reason = "every test program uses a part of it")]

use super::{DEADLINE, connect};
use ksm_engine::digest::Salt;
use ksm_engine::order::{Order, OrderId, OrderRef, ReportRef};
use ksm_engine::page::{ArenaId, PageRun, Slot};
use ksm_engine::wire::{
    Birth, Figures, HANDED_IN, HeldArena, Hello, Label, MAX_MESSAGE, MessageBuffer, MountDevice,
    NamedArena, RefusalReason, ToAgent, ToDaemon, Versions,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// What came from the daemon.
#[derive(Debug)]
pub enum Heard {
    Welcome,
    Refused(RefusalReason),
    Figures(Figures),
    Mount(MountDevice),
    Order(OrderId, Order),
    HungUp,
}

fn held(inodes: &[u64]) -> Vec<HeldArena> {
    let arena = |(tag, inode): (u32, &u64)| HeldArena {
        inode: *inode,
        tag,
        padding: 0,
    };
    (0..).zip(inodes).map(arena).collect()
}

pub struct Agent {
    pub socket: OwnedFd,
    buffer: Box<MessageBuffer>,
    /// Descriptors of the last message.
    pub descriptors: Vec<OwnedFd>,
    /// From the welcome.
    pub salt: Option<Salt>,
    /// Where the test's page is mapped.
    pub slot: Option<Slot>,
    /// How often the test's page was visited.
    pub visits: u32,
    /// Arenas that the daemon has named, and those that it has let go.
    pub names: Vec<NamedArena>,
    pub let_go: Vec<ArenaId>,
}

impl Agent {
    pub fn connect(socket: &Path) -> Self {
        Self {
            socket: connect(socket).unwrap(),
            buffer: Box::new(MessageBuffer([0; MAX_MESSAGE])),
            descriptors: Vec::new(),
            salt: None,
            slot: None,
            visits: 0,
            names: Vec::new(),
            let_go: Vec::new(),
        }
    }

    /// Connects and greets as this process.
    pub fn join(socket: &Path) -> Self {
        let mut agent = Self::connect(socket);
        agent.say(&ToDaemon::Hello(Hello {
            pid: std::process::id(),
            parent: 0,
            birth: Birth::default(),
            versions: Versions::SPOKEN,
            label: Label::default(),
        }));
        let heard = agent.hear();
        assert!(matches!(heard, Heard::Welcome), "{heard:?}");
        agent
    }

    pub fn say(&mut self, message: &ToDaemon<'_>) {
        let len = message.encode(&mut self.buffer).unwrap();
        let bytes = &self.buffer.0[..len];
        rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    /// The same of a peer that may have been cut off; whether it was not.
    pub fn offer(&mut self, message: &ToDaemon<'_>) -> bool {
        let len = message.encode(&mut self.buffer).unwrap();
        let bytes = &self.buffer.0[..len];
        rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL).is_ok()
    }

    pub fn say_bytes(&self, bytes: &[u8]) {
        rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    /// Says something with descriptors. The daemon may have hung up.
    pub fn say_with(&mut self, message: &ToDaemon<'_>, descriptors: &[&OwnedFd]) {
        let len = message.encode(&mut self.buffer).unwrap();
        let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_IN))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let parts = [IoSlice::new(&self.buffer.0[..len])];
        let flags = SendFlags::NOSIGNAL;
        let _ = rustix::net::sendmsg(&self.socket, &parts, &mut control, flags);
    }

    /// Says that arenas with these inodes are mapped. Their places are what it calls them.
    pub fn hold(&mut self, inodes: &[u64]) {
        self.say(&ToDaemon::Holds {
            arenas: &held(inodes),
        });
    }

    /// The same, with descriptors.
    pub fn hand_in(&mut self, descriptors: &[&OwnedFd], inode_of: impl Fn(&OwnedFd) -> u64) {
        let inodes: Vec<u64> = descriptors.iter().map(|fd| inode_of(fd)).collect();
        let arenas = &held(&inodes);
        self.say_with(&ToDaemon::Holds { arenas }, descriptors);
    }

    pub fn register(&mut self, start: u64, len: u64) {
        self.say(&ToDaemon::Register {
            range: PageRun { start, len },
        });
    }

    pub fn report(&mut self, order: OrderId, report: ReportRef<'_>) {
        self.say(&ToDaemon::Report { order, report });
    }

    /// The next message; what it says of arenas is only noted.
    pub fn hear(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.hear_anything() {
                return heard;
            }
        }
    }

    fn hear_anything(&mut self) -> Option<Heard> {
        let timeout = Timespec::try_from(DEADLINE).unwrap();
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        assert_eq!(
            poll(&mut fds, Some(&timeout)),
            Ok(1),
            "the daemon says nothing"
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut self.buffer.0)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags);
        let len = match got {
            Ok(message) => message.bytes,
            Err(Errno::CONNRESET) => 0,
            Err(errno) => panic!("recvmsg: {errno}"),
        };
        if len == 0 {
            return Some(Heard::HungUp);
        }
        self.descriptors.clear();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        Some(match ToAgent::decode(&self.buffer.0[..len]).unwrap() {
            ToAgent::Welcome { salt } => {
                self.salt = Some(salt);
                Heard::Welcome
            }
            ToAgent::Refused(reason) => Heard::Refused(reason),
            ToAgent::Figures(figures) => Heard::Figures(figures),
            ToAgent::Mount(device) => Heard::Mount(device),
            ToAgent::Order { id, order } => Heard::Order(id, owned(order)),
            ToAgent::Named { names } => {
                self.names.extend(names);
                return None;
            }
            ToAgent::LetGo { arenas } => {
                self.let_go.extend(arenas);
                return None;
            }
            ToAgent::Keep { .. } | ToAgent::Processes { .. } | ToAgent::Scanned { .. } => {
                return None;
            }
        })
    }

    /// The next message, if one comes within `time`.
    pub fn hear_within(&mut self, time: Duration) -> Option<Heard> {
        let time = Timespec::try_from(time).unwrap();
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        (poll(&mut fds, Some(&time)) == Ok(1))
            .then(|| self.hear_anything())
            .flatten()
    }

    /// Whether nothing has arrived.
    pub fn hear_would_wait(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut fds, Some(&now)) == Ok(0)
    }

    /// An order, if one has arrived.
    pub fn order_if_any(&mut self) -> Option<(OrderId, Order)> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        (poll(&mut fds, Some(&now)) == Ok(1)).then(|| self.order())
    }

    /// The next message, which must be an order.
    pub fn order(&mut self) -> (OrderId, Order) {
        match self.hear() {
            Heard::Order(id, order) => (id, order),
            other => panic!("{other:?} instead of an order"),
        }
    }
}

fn owned(order: OrderRef<'_>) -> Order {
    match order {
        OrderRef::Visit {
            range,
            limit,
            skip,
            nodes,
            brief,
        } => Order::Visit {
            range,
            limit,
            skip: skip.to_vec(),
            nodes,
            brief,
        },
        OrderRef::Donate { runs } => Order::Donate {
            runs: runs.to_vec(),
        },
        OrderRef::Map { arena, runs } => Order::Map {
            arena,
            runs: runs.to_vec(),
        },
        OrderRef::Zero { runs } => Order::Zero {
            runs: runs.to_vec(),
        },
        OrderRef::Split { runs } => Order::Split {
            runs: runs.to_vec(),
        },
        OrderRef::Unmerge { range } => Order::Unmerge { range },
        OrderRef::Count => Order::Count,
        OrderRef::Remap { arena, runs } => Order::Remap {
            arena,
            runs: runs.to_vec(),
        },
    }
}
