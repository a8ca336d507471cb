//! How much of the engine one user, and one domain, may have.

use super::Engine;
use crate::page::{ArenaId, DomainId, MmId, PAGE_SIZE, UserId};
use crate::store::SlotStore;
use std::collections::BTreeMap;

/// Limits. Whoever reaches one keeps what is merged, and gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// The most pages of one user that are kept a record of: about 64 bytes each.
    pub pages_per_user: u64,
    /// The most bytes in the arenas of one domain.
    pub arena_bytes_per_domain: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            pages_per_user: u64::MAX,
            arena_bytes_per_domain: u64::MAX,
        }
    }
}

/// Pages of each user: counted when a scan begins, and those that came since.
#[derive(Debug, Default)]
pub(crate) struct Tracked {
    pages: BTreeMap<UserId, u64>,
    /// Who has been told of in this scan.
    told: Vec<UserId>,
}

impl<S: SlotStore> Engine<S> {
    /// Sets limits. Those who have more already keep it.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.quotas = quotas;
    }

    /// Counts anew what each user has.
    pub(super) fn count_tracked(&mut self) {
        let mut pages = BTreeMap::new();
        for (_, mm) in self.mms.iter() {
            *pages.entry(mm.user).or_default() += mm.items.len();
        }
        self.tracked = Tracked {
            pages,
            told: Vec::new(),
        };
    }

    /// Whether one more page of `mm` may be kept a record of; it is counted then.
    pub(super) fn may_track(&mut self, mm: MmId) -> bool {
        let Some(user) = self.mms.get(mm).map(|mm| mm.user) else {
            return false;
        };
        let most = self.quotas.pages_per_user;
        let pages = self.tracked.pages.entry(user).or_default();
        if *pages < most {
            *pages += 1;
            return true;
        }
        if !self.tracked.told.contains(&user) {
            self.tracked.told.push(user);
            log::warn!(
                "user {} has {most} pages, the most that are kept a record of: others are not merged",
                user.0
            );
        }
        false
    }

    /// Whether a domain may have one more arena.
    pub(super) fn may_open_arena(&self, domain: DomainId, arena: ArenaId) -> bool {
        let held = self
            .domains
            .get(&domain)
            .map_or(0, |domain| domain.arenas.len() as u64);
        let each = u64::from(self.store.slots_per_arena()) * PAGE_SIZE as u64;
        let fits = (held + 1).saturating_mul(each) <= self.quotas.arena_bytes_per_domain;
        if !fits {
            let most = self.quotas.arena_bytes_per_domain;
            log::debug!(
                "domain {} has no room for {arena:?} in {most} bytes",
                domain.0
            );
        }
        fits
    }
}
