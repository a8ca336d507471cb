//! Which domain a peer is in, by number.

use super::identity;
use super::sys;
use crate::policy::{Domain, Outside, Policy, Subject};
use ksm_engine::page::DomainId;
use ksm_engine::wire::{Label, RefusalReason};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

/// From here on numbers are given out; below it, a domain has the number of its user.
const FIRST_GIVEN: u32 = 0xf000_0000;
/// The most domains at one time that are not simply a user. The engine keeps what it has of each.
const MOST_GIVEN: usize = 1 << 16;

/// Whether a number was given out in the order of coming: for the next daemon it names something else.
#[must_use]
pub fn is_given(domain: DomainId) -> bool {
    domain.0 >= FIRST_GIVEN
}

/// The policy, and the numbers that are given out.
#[derive(Debug)]
pub struct Domains {
    policy: Policy,
    given: HashMap<Domain, DomainId>,
    /// Which domains have them, and how many processes these have.
    joined: HashMap<DomainId, (Domain, usize)>,
    /// To be given out next: none again before all others were, since salts are made of them.
    next: u32,
}

impl Domains {
    /// Domains as a policy says.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            given: HashMap::new(),
            joined: HashMap::new(),
            next: FIRST_GIVEN,
        }
    }

    /// The domain of the process of `uid` at the other end of `socket`.
    ///
    /// # Errors
    /// With what it is to be told, if it is in none.
    pub fn of_peer(
        &self,
        socket: BorrowedFd<'_>,
        uid: u32,
        label: Label,
    ) -> Result<Domain, RefusalReason> {
        let cgroup = if self.policy.asks_for_cgroups() {
            // The descriptor is that of the process that connected, and of no other that got its number later.
            sys::peer_pidfd(socket)
                .ok()
                .and_then(|process| identity::cgroup(&process))
        } else {
            None
        };
        let subject = Subject {
            uid,
            cgroup: cgroup.as_deref(),
            label: label.as_str(),
        };
        self.policy
            .domain_of(subject)
            .map_err(|outside| match outside {
                Outside::Never | Outside::NoCgroup => RefusalReason::Policy,
                Outside::Label => RefusalReason::Label,
            })
    }

    /// A process joins a domain, whose number this is. A domain that had none gets one that is not `taken` by what is left of
    /// another one. `None` if there are too many.
    pub fn join(&mut self, domain: &Domain, taken: impl Fn(DomainId) -> bool) -> Option<DomainId> {
        match domain {
            Domain::User(uid) if *uid < FIRST_GIVEN => return Some(DomainId(*uid)),
            _ => {}
        }
        if let Some(known) = self.given.get(domain) {
            if let Some((_, processes)) = self.joined.get_mut(known) {
                *processes += 1;
            }
            return Some(*known);
        }
        if self.given.len() >= MOST_GIVEN {
            return None;
        }
        let number = loop {
            let number = DomainId(self.next);
            self.next = self.next.checked_add(1).unwrap_or(FIRST_GIVEN);
            if !self.joined.contains_key(&number) && !taken(number) {
                break number;
            }
        };
        self.given.insert(domain.clone(), number);
        self.joined.insert(number, (domain.clone(), 1));
        Some(number)
    }

    /// A process that has joined has gone. Whether it was the last one: then the number is not the domain's any more.
    pub fn leave(&mut self, number: DomainId) -> bool {
        let Some((_, processes)) = self.joined.get_mut(&number) else {
            return false;
        };
        *processes -= 1;
        if *processes > 0 {
            return false;
        }
        if let Some((domain, _)) = self.joined.remove(&number) {
            self.given.remove(&domain);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Domains, FIRST_GIVEN, MOST_GIVEN};
    use crate::policy::{Domain, Policy};
    use ksm_engine::page::DomainId;

    fn join(domains: &mut Domains, domain: &Domain) -> Option<DomainId> {
        domains.join(domain, |_| false)
    }

    #[test]
    fn every_domain_has_a_number_of_its_own() {
        let mut domains = Domains::new(Policy::default());
        let mut seen = std::collections::HashSet::new();
        for domain in [
            Domain::User(0),
            Domain::User(1000),
            Domain::User(FIRST_GIVEN),
            Domain::User(FIRST_GIVEN + 1),
            Domain::User(u32::MAX - 1),
            Domain::Merged(0),
            Domain::Merged(1),
            Domain::Label("0".into()),
            Domain::Cgroup(0, "/".into()),
            Domain::Cgroup(1, "/".into()),
        ] {
            let number = join(&mut domains, &domain).unwrap();
            assert!(seen.insert(number), "{domain:?}");
            assert_eq!(join(&mut domains, &domain), Some(number));
        }
        let user = Domain::User(1000);
        assert_eq!(join(&mut domains, &user), Some(DomainId(1000)));
    }

    #[test]
    fn numbers_come_to_an_end_and_are_given_back_with_the_last_process() {
        let mut domains = Domains::new(Policy::default());
        let all = (0..2 * MOST_GIVEN).filter_map(|at| join(&mut domains, &Domain::Merged(at)));
        let all: Vec<_> = all.collect();
        assert_eq!(all.len(), MOST_GIVEN);
        assert_eq!(join(&mut domains, &Domain::User(7)), Some(DomainId(7)));
        assert!(!domains.leave(DomainId(7)));
        let (used, unused) = (Domain::Merged(0), Domain::Merged(2 * MOST_GIVEN));
        assert_eq!(join(&mut domains, &used), Some(all[0]));
        assert!(!domains.leave(all[0]));
        assert_eq!(join(&mut domains, &unused), None);
        assert!(domains.leave(all[0]));
        assert!(join(&mut domains, &unused).is_some_and(|number| !all.contains(&number)));
    }

    #[test]
    fn no_number_is_given_out_that_is_in_use() {
        let mut domains = Domains::new(Policy::default());
        domains.next = u32::MAX;
        let last = join(&mut domains, &Domain::Merged(0));
        assert_eq!(last, Some(DomainId(u32::MAX)));
        let first = domains.join(&Domain::Merged(1), |number| number.0 < FIRST_GIVEN + 3);
        assert_eq!(first, Some(DomainId(FIRST_GIVEN + 3)));
        domains.next = u32::MAX;
        let next = join(&mut domains, &Domain::Merged(2));
        assert_eq!(next, Some(DomainId(FIRST_GIVEN)));
    }
}
