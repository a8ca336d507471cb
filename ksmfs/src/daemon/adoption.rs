//! Taking over the arenas of the daemon before this one.
//!
//! Agents say which arenas their processes have mapped, and hand in descriptors. An arena that is known is named to them.
//! One that is not is taken over if the kernel vouches for it ([`examine`]): never on anybody's word. What an agent says it
//! has mapped without a descriptor only names an arena of its own domain, and costs nobody else anything.

use super::Daemon;
use super::domains;
use super::peers::{Agent, Peer, Role};
use super::talk::Parting;
use ksm_engine::arena::{Adoptable, NotAdopted, examine};
use ksm_engine::order::MAX_RUNS;
use ksm_engine::page::{ArenaId, DomainId};
use ksm_engine::wire::{HANDED_IN, HeldArena, MessageBuffer, NamedArena, ToAgent};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

/// The most arenas that one agent may have mapped.
const MOST_HELD: usize = 2048;

/// What an agent has mapped.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Arenas of which it may have a descriptor.
    given: BTreeSet<ArenaId>,
    /// Those that it has asked for and that are not here yet.
    unnamed: Vec<Asked>,
    /// Those that it has and whose descriptors it is to get, when there is room.
    to_keep: VecDeque<ArenaId>,
}

#[derive(Debug)]
struct Asked {
    arena: HeldArena,
    has_descriptor: bool,
}

impl Holdings {
    /// An order brings an arena's descriptor.
    pub fn gets(&mut self, arena: ArenaId) {
        self.given.insert(arena);
    }

    /// Names what is here now of what was asked for.
    fn name(&mut self, find: impl Fn(u64) -> Option<ArenaId>) -> Vec<NamedArena> {
        let mut names = Vec::new();
        self.unnamed.retain(|asked| {
            let Some(arena) = find(asked.arena.inode) else {
                return true;
            };
            let tag = asked.arena.tag;
            names.push(NamedArena { tag, arena });
            if self.given.insert(arena) && !asked.has_descriptor {
                self.to_keep.push_back(arena);
            }
            false
        });
        names
    }
}

impl Daemon {
    /// An agent says what it has mapped, and perhaps hands it in.
    pub(super) fn note_held(
        &mut self,
        peer: &mut Peer,
        arenas: &[HeldArena],
        descriptors: Vec<OwnedFd>,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        let Role::Agent(agent) = &mut peer.role else {
            return Ok(());
        };
        let domain = agent.domain;
        let holdings = &mut agent.holdings;
        if holdings.unnamed.len() + arenas.len() > MOST_HELD || descriptors.len() > HANDED_IN {
            descriptors.into_iter().for_each(|fd| self.closer.close(fd));
            return Err(Parting::TooManyArenas);
        }
        let mut handed_in = descriptors.into_iter();
        let mut is_new = false;
        for arena in arenas {
            let descriptor = handed_in.next();
            holdings.unnamed.push(Asked {
                arena: *arena,
                has_descriptor: descriptor.is_some(),
            });
            if let Some(descriptor) = descriptor {
                is_new |= self.take_over(domain, descriptor);
            }
        }
        handed_in.for_each(|fd| self.closer.close(fd));
        self.name_arenas(peer, buffer)?;
        if is_new {
            self.name_arenas_of(domain, buffer);
        }
        Ok(())
    }

    /// Takes over an arena if it is one. Returns whether it is here now and was not before.
    fn take_over(&mut self, domain: DomainId, descriptor: OwnedFd) -> bool {
        let found = match examine(descriptor) {
            Ok(found) => found,
            Err(NotAdopted { descriptor, why }) => {
                log::debug!(
                    "a descriptor of domain {} is not taken over: {why}",
                    domain.0
                );
                self.closer.close(descriptor);
                return false;
            }
        };
        let store = self.engine.store();
        let known = store.with_inode(found.domain, found.inode).is_some();
        // The number of a domain that is not simply a user says nothing about whose pages an earlier daemon put there.
        if found.domain != domain || known || domains::is_given(domain) {
            self.closer.close(found.memfd);
            return false;
        }
        if found.is_open {
            self.sealer.seal(found);
            return false;
        }
        self.adopt(found)
    }

    fn adopt(&mut self, found: Adoptable) -> bool {
        let (domain, inode) = (found.domain, found.inode);
        if found.is_open || self.engine.store().with_inode(domain, inode).is_some() {
            return false;
        }
        let (numa, slots) = (found.numa, found.slots);
        let keep = |store: &mut ksm_engine::arena::MemfdStore, id| store.adopt(id, found);
        let adopted = self.engine.adopt_arena(domain, numa, slots, keep);
        log::debug!("arena {inode:#x} of domain {}: {adopted:?}", domain.0);
        adopted.is_some()
    }

    /// Takes over what could be sealed.
    pub(super) fn adopt_sealed(&mut self, buffer: &mut MessageBuffer) {
        let sealed = self.sealer.take();
        let mut domains = BTreeSet::new();
        for found in sealed {
            let domain = found.domain;
            if self.adopt(found) {
                domains.insert(domain);
            }
        }
        for domain in domains {
            self.name_arenas_of(domain, buffer);
        }
    }

    fn name_arenas_of(&mut self, domain: DomainId, buffer: &mut MessageBuffer) {
        for token in self.peers.agents_that(|_, agent| agent.domain == domain) {
            self.with_peer(token, |daemon, peer| daemon.name_arenas(peer, buffer));
        }
    }

    fn name_arenas(&mut self, peer: &mut Peer, buffer: &mut MessageBuffer) -> Result<(), Parting> {
        let Role::Agent(agent) = &mut peer.role else {
            return Ok(());
        };
        let domain = agent.domain;
        let store = self.engine.store();
        let names = agent.holdings.name(|inode| store.with_inode(domain, inode));
        self.descriptors_are_due |= !agent.holdings.to_keep.is_empty();
        for named in &names {
            self.engine.expect_sharers(domain, named.arena);
        }
        for names in names.chunks(MAX_RUNS) {
            let message = ToAgent::Named { names };
            peer.outbox
                .send(peer.socket.as_fd(), &message, &[], buffer)?;
        }
        Ok(())
    }

    /// Sends descriptors to keep to those who have room for messages.
    pub(super) fn send_what_is_to_keep(&mut self, buffer: &mut MessageBuffer) {
        if !self.descriptors_are_due {
            return;
        }
        let wants_more = |agent: &Agent| !agent.holdings.to_keep.is_empty();
        let wanting = self.peers.agents_that(|_, agent| wants_more(agent));
        self.descriptors_are_due = !wanting.is_empty();
        for token in wanting {
            self.with_peer(token, |daemon, peer| daemon.send_to_keep(peer, buffer));
        }
    }

    fn send_to_keep(&self, peer: &mut Peer, buffer: &mut MessageBuffer) -> Result<(), Parting> {
        let Role::Agent(agent) = &mut peer.role else {
            return Ok(());
        };
        while peer.outbox.is_empty()
            && let Some(arena) = agent.holdings.to_keep.pop_front()
        {
            if let Some(descriptor) = self.engine.store().descriptor(arena) {
                let message = ToAgent::Keep { arena };
                peer.outbox
                    .send(peer.socket.as_fd(), &message, &[descriptor], buffer)?;
            }
        }
        Ok(())
    }

    /// Tells those who have descriptors of arenas that were let go.
    pub(super) fn tell_of_released(&mut self, buffer: &mut MessageBuffer) {
        let released = self.engine.store_mut().take_released();
        if released.is_empty() {
            return;
        }
        for token in self.peers.agents_that(|_, _| true) {
            self.with_peer(token, |_, peer| {
                let Role::Agent(agent) = &mut peer.role else {
                    return Ok(());
                };
                let given = &mut agent.holdings.given;
                let mut arenas = released.clone();
                arenas.retain(|arena| given.remove(arena));
                for arenas in arenas.chunks(MAX_RUNS) {
                    let message = ToAgent::LetGo { arenas };
                    peer.outbox
                        .send(peer.socket.as_fd(), &message, &[], buffer)?;
                }
                Ok(())
            });
        }
    }
}
