//! How much of the daemon one user may have, and the defaults.

use ksm_engine::page::PAGE_SIZE;

/// Limits for each user. Who reaches one is told, or is not merged any further; nobody else notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Connections.
    pub peers: usize,
    /// Separate regions of all his processes.
    pub regions: usize,
    /// Pages that are kept a record of.
    pub pages: u64,
    /// Bytes of merged pages, in whatever domains.
    pub merged: u64,
}

impl Quotas {
    /// Connections, unless said otherwise.
    pub const PEERS: usize = 4096;
    /// Regions, unless said otherwise: sixteen processes with all the maps that they can have.
    pub const REGIONS: usize = 1 << 20;

    /// What belongs to the engine.
    #[must_use]
    pub fn of_engine(&self) -> ksm_engine::engine::Quotas {
        ksm_engine::engine::Quotas {
            pages_per_user: self.pages,
            arena_bytes_per_user: self.merged,
        }
    }

    /// Four times the pages that this machine has: forked and merged ones are several pages each.
    #[must_use]
    pub fn default_pages() -> u64 {
        memory().saturating_mul(4) / PAGE_SIZE as u64
    }

    /// Half of this machine's memory: of merged pages there is another one at least.
    #[must_use]
    pub fn default_merged() -> u64 {
        memory() / 2
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            peers: Self::PEERS,
            regions: Self::REGIONS,
            pages: Self::default_pages(),
            merged: Self::default_merged(),
        }
    }
}

/// The machine's memory in bytes.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    let units = u64::from(info.mem_unit.max(1));
    info.totalram.saturating_mul(units)
}
