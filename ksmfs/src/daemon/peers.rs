//! The connected peers, and the ways of finding one.

use super::adoption::Holdings;
use super::children::Children;
use super::donation::DonationBuffer;
use super::identity::Credentials;
use super::outbox::Outbox;
use super::regions::Regions;
use super::turns::Turns;
use ksm_engine::page::{DomainId, MmId, UserId};
use ksm_engine::wire::Birth;
use rustix::process::Pid;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// What a peer has turned out to be.
#[derive(Debug)]
pub enum Role {
    /// It has not said anything yet.
    Unknown,
    /// Over the limit of its user: its first message is answered with a refusal.
    Surplus,
    /// It asks for figures, or for the mount.
    Asking,
    /// It merges pages.
    Agent(Box<Agent>),
}

/// An agent, as the daemon knows it.
#[derive(Debug)]
pub struct Agent {
    /// The address space it works in.
    pub mm: MmId,
    /// The domain that it was found to be in.
    pub domain: DomainId,
    /// The app that it belongs to.
    pub app: Pid,
    /// Where it puts the bytes of pages.
    pub donation: DonationBuffer,
    /// Whether that is its turn.
    pub turns: Turns,
    /// The number of its ledger.
    pub ledger: u32,
    /// The fork that the app came from.
    pub birth: Birth,
    /// Its forked children.
    pub children: Children,
    /// Readable when the app has ended.
    pub _end: OwnedFd,
    /// What it has registered.
    pub regions: Regions,
    /// Whether all of its memory is to be merged.
    pub merges_any: bool,
    /// The arenas it has mapped.
    pub holdings: Holdings,
}

/// One connection.
#[derive(Debug)]
pub struct Peer {
    /// The socket.
    pub socket: OwnedFd,
    /// Whom the kernel says it connects to.
    pub credentials: Credentials,
    /// What it is.
    pub role: Role,
    /// What it was not sent yet.
    pub outbox: Outbox,
    /// Whether the event loop was asked to say when the socket takes more.
    pub waits_for_room: bool,
}

/// All connections. A token names one, and is never used again.
#[derive(Debug)]
pub struct Peers {
    by_token: HashMap<u64, Peer>,
    by_mm: HashMap<MmId, u64>,
    per_user: HashMap<u32, usize>,
    regions: HashMap<u32, usize>,
    next_token: u64,
}

impl Peers {
    /// No connections; tokens count from `first_token`.
    #[must_use]
    pub fn new(first_token: u64) -> Self {
        Self {
            by_token: HashMap::new(),
            by_mm: HashMap::new(),
            per_user: HashMap::new(),
            regions: HashMap::new(),
            next_token: first_token,
        }
    }

    /// How many connections a user has.
    #[must_use]
    pub fn of_user(&self, uid: u32) -> usize {
        self.per_user.get(&uid).copied().unwrap_or(0)
    }

    /// A peer of `uid` that had so many regions has so many now; how many its user has.
    pub fn count_regions(&mut self, uid: u32, had: usize, has: usize) -> usize {
        let all = self.regions.entry(uid).or_default();
        *all = (*all + has).saturating_sub(had);
        let now = *all;
        if now == 0 {
            self.regions.remove(&uid);
        }
        now
    }

    /// A token for the next connection.
    pub fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token - 1
    }

    /// Adds a new connection.
    pub fn add(&mut self, token: u64, peer: Peer) {
        *self.per_user.entry(peer.credentials.uid).or_default() += 1;
        self.put_back(token, peer);
    }

    /// Takes a connection out to work with it; it is put back, or dropped for good with [`Self::forget`].
    pub fn take(&mut self, token: u64) -> Option<Peer> {
        self.by_token.remove(&token)
    }

    /// Takes all of them out, for good.
    pub fn drain(&mut self) -> impl Iterator<Item = Peer> {
        self.by_token.drain().map(|(_, peer)| peer)
    }

    /// Puts a connection back.
    pub fn put_back(&mut self, token: u64, peer: Peer) {
        if let Role::Agent(agent) = &peer.role {
            self.by_mm.insert(agent.mm, token);
        }
        self.by_token.insert(token, peer);
    }

    /// Forgets a connection that was taken out.
    pub fn forget(&mut self, peer: &Peer) {
        let uid = peer.credentials.uid;
        if let Some(count) = self.per_user.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                self.per_user.remove(&uid);
            }
        }
        if let Role::Agent(agent) = &peer.role {
            self.by_mm.remove(&agent.mm);
            self.count_regions(uid, agent.regions.count(), 0);
        }
    }

    /// The token of the agent of an address space.
    #[must_use]
    pub fn agent_of(&self, mm: MmId) -> Option<u64> {
        self.by_mm.get(&mm).copied()
    }

    /// All agents, and whose they are.
    pub fn agents(&self) -> impl Iterator<Item = (u32, &Agent)> {
        self.by_token.values().filter_map(|peer| match &peer.role {
            Role::Agent(agent) => Some((peer.credentials.uid, &**agent)),
            _ => None,
        })
    }

    /// All agents, and whose they are.
    pub fn agents_mut(&mut self) -> impl Iterator<Item = (UserId, &mut Agent)> {
        self.by_token
            .values_mut()
            .filter_map(|peer| match &mut peer.role {
                Role::Agent(agent) => Some((UserId(peer.credentials.uid), &mut **agent)),
                _ => None,
            })
    }

    /// Tokens of all agents that are so.
    pub fn agents_that(&self, so: impl Fn(&Peer, &Agent) -> bool) -> Vec<u64> {
        let is_one = |peer: &Peer| match &peer.role {
            Role::Agent(agent) => so(peer, agent),
            _ => false,
        };
        let agents = self.by_token.iter().filter(|(_, peer)| is_one(peer));
        agents.map(|(token, _)| *token).collect()
    }

    /// The agent of this user's that has the ledger with this number.
    pub fn with_ledger(&mut self, ledger: u32, uid: u32) -> Option<&mut Agent> {
        let mut users = self
            .by_token
            .values_mut()
            .filter(|peer| peer.credentials.uid == uid);
        users.find_map(|peer| match &mut peer.role {
            Role::Agent(agent) if agent.ledger == ledger => Some(&mut **agent),
            _ => None,
        })
    }

    /// The user of a process that takes part, whether all of its memory is to be merged, and whether any is.
    pub fn process(&self, app: Pid) -> Option<(u32, bool, bool)> {
        self.by_token.values().find_map(|peer| match &peer.role {
            Role::Agent(agent) if agent.app == app => Some((
                peer.credentials.uid,
                agent.merges_any,
                agent.regions.count() > 0,
            )),
            _ => None,
        })
    }

    /// The address spaces of an app: one, or none if it has no agent. More only if it loaded the library twice.
    pub fn of_app(&self, app: Pid) -> impl Iterator<Item = MmId> {
        self.by_token
            .values()
            .filter_map(move |peer| match &peer.role {
                Role::Agent(agent) if agent.app == app => Some(agent.mm),
                _ => None,
            })
    }
}
