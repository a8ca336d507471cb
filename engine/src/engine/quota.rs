//! How much of the engine one user may have, in whatever domains.

use super::Engine;
use super::arenas::Arena;
use crate::page::{MmId, PAGE_SIZE, UserId};
use crate::store::SlotStore;
use std::collections::BTreeMap;

/// Limits. Whoever reaches one keeps what is merged, and gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// The most pages of one user that are kept a record of: about 64 bytes each.
    pub pages_per_user: u64,
    /// The most bytes in arenas that are filled with pages of one user, in all of his domains. A merged page is his whose
    /// process gave the bytes.
    pub arena_bytes_per_user: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            pages_per_user: u64::MAX,
            arena_bytes_per_user: u64::MAX,
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

/// Slots that were filled with pages of each user, in arenas that are still here.
#[derive(Debug, Default)]
pub(crate) struct Filled(BTreeMap<UserId, u64>);

impl Filled {
    pub(crate) fn add(&mut self, user: UserId, slots: u64) {
        *self.0.entry(user).or_default() += slots;
    }

    /// An arena has been let go.
    pub(crate) fn give_back(&mut self, arena: &Arena) {
        let slots = self.0.entry(arena.user()).or_default();
        *slots -= arena.filled();
        if *slots == 0 {
            self.0.remove(&arena.user());
        }
    }

    fn of(&self, user: UserId) -> u64 {
        self.0.get(&user).copied().unwrap_or(0)
    }

    /// All users with any.
    pub(crate) fn all(&self) -> &BTreeMap<UserId, u64> {
        &self.0
    }
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

    /// How many of `wanted` slots may be filled with pages of `user`. If that are not all, what he wastes is closed, so that
    /// its memory comes back.
    pub(super) fn may_fill(&mut self, user: UserId, wanted: usize) -> usize {
        let most = self.quotas.arena_bytes_per_user / PAGE_SIZE as u64;
        let left = most.saturating_sub(self.filled.of(user));
        let may = usize::try_from(left).map_or(wanted, |left| left.min(wanted));
        if may < wanted {
            log::debug!("user {} has {most} merged pages, the most he may", user.0);
            for domain in self.domains.values_mut() {
                for arena in domain.arenas.close_wasteful(user) {
                    self.store.finish(arena);
                }
            }
        }
        may
    }
}
