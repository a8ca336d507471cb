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
/// The most domains that are not simply a user. The engine keeps what it has of each.
const MOST_GIVEN: u32 = 1 << 16;

/// Whether a number was given out in the order of coming: for the next daemon it names something else.
#[must_use]
pub fn is_given(domain: DomainId) -> bool {
    domain.0 >= FIRST_GIVEN
}

/// The policy, and the numbers that were given out.
#[derive(Debug)]
pub struct Domains {
    policy: Policy,
    given: HashMap<Domain, DomainId>,
}

impl Domains {
    /// Domains as a policy says.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            given: HashMap::new(),
        }
    }

    /// The domain of the process of `uid` at the other end of `socket`.
    ///
    /// # Errors
    /// With what it is to be told, if it is in none.
    pub fn of_peer(
        &mut self,
        socket: BorrowedFd<'_>,
        uid: u32,
        label: Label,
    ) -> Result<DomainId, RefusalReason> {
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
        match self.policy.domain_of(subject) {
            Ok(domain) => self.number(domain).ok_or(RefusalReason::TooMany),
            Err(Outside::Never | Outside::NoCgroup) => Err(RefusalReason::Policy),
            Err(Outside::Label) => Err(RefusalReason::Label),
        }
    }

    fn number(&mut self, domain: Domain) -> Option<DomainId> {
        match domain {
            Domain::User(uid) if uid < FIRST_GIVEN => return Some(DomainId(uid)),
            _ => {}
        }
        let next = u32::try_from(self.given.len()).ok()?;
        if let Some(known) = self.given.get(&domain) {
            return Some(*known);
        }
        if next >= MOST_GIVEN {
            return None;
        }
        let number = DomainId(FIRST_GIVEN + next);
        self.given.insert(domain, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::{Domains, FIRST_GIVEN, MOST_GIVEN};
    use crate::policy::{Domain, Policy};
    use ksm_engine::page::DomainId;

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
            let number = domains.number(domain.clone()).unwrap();
            assert!(seen.insert(number), "{domain:?}");
            assert_eq!(domains.number(domain), Some(number));
        }
        assert_eq!(domains.number(Domain::User(1000)), Some(DomainId(1000)));
    }

    #[test]
    fn numbers_come_to_an_end() {
        let mut domains = Domains::new(Policy::default());
        let all = (0..2 * MOST_GIVEN as usize).filter_map(|at| domains.number(Domain::Merged(at)));
        assert_eq!(all.count(), MOST_GIVEN as usize);
        assert_eq!(domains.number(Domain::User(7)), Some(DomainId(7)));
    }
}
