//! Engine and agent face to face: orders go from one to the other without becoming messages.

use super::EmbeddedError;
use crate::agent::Agent;
use crate::agent::report::ReportBuffer;
use crate::fork::Claim;
use crate::space::Space;
use crate::space::notices::{Next, Notice};
use crate::space::release::Release;
use crate::sys::memory::Placed;
use crate::sys::uffd::Userfaults;
use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::Engine;
use ksm_engine::order::{DONATION_PAGES, Donation, Order};
use ksm_engine::page::{DomainId, MmId, PAGE_SIZE, PageBytes, PageRun};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long nobody looks when nothing is due.
const IDLE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) engine: Engine<MemfdStore>,
    pub(super) mm: MmId,
    space: &'static Space,
    agent: Agent,
    report: Placed<ReportBuffer>,
    donation: Donated,
    began: Instant,
    _claim: Claim,
}

impl Core {
    pub(super) fn new(
        space: &'static Space,
        userfaults: Userfaults,
        claim: Claim,
    ) -> Result<Self, EmbeddedError> {
        let os = |call| move |errno| EmbeddedError::Os { call, errno };
        let mut secret = [0; 32];
        getrandom(&mut secret, GetRandomFlags::empty()).map_err(os("getrandom"))?;
        let mut engine = Engine::new(MemfdStore::new(), secret);
        let domain = DomainId(rustix::process::geteuid().as_raw());
        let mm = engine.add_mm(domain).ok_or(EmbeddedError::Taken)?;
        let donation = memfd_create("ksm-donation", MemfdFlags::CLOEXEC)
            .map_err(os("memfd_create of the donation buffer"))?;
        ftruncate(&donation, (DONATION_PAGES * PAGE_SIZE) as u64)
            .map_err(os("ftruncate of the donation buffer"))?;
        let app = rustix::process::getpid().as_raw_pid().unsigned_abs();
        let agent = Agent::new(
            space,
            userfaults,
            app,
            donation.as_fd(),
            engine.salt(domain),
        )?;
        let report = Placed::<ReportBuffer>::new().map_err(os("mmap of the report"))?;
        let own = space.add_own_range(report.run());
        own.map_err(|_| os("own memory")(Errno::NOMEM))?;
        // Whatever an earlier engine knew, this one does not.
        while !space.on_reconnect() {}
        Ok(Self {
            engine,
            mm,
            space,
            agent,
            report,
            donation: Donated(donation),
            began: Instant::now(),
            _claim: claim,
        })
    }

    /// Does all that is to be done now.
    pub(super) fn turn(&mut self) -> Result<(), EmbeddedError> {
        if let Some(end) = self.space.end_of_notices() {
            while let Next::Notice(notice) = self.space.next_notice(end) {
                match notice {
                    Notice::Register(run) => self.engine.register(self.mm, run),
                    Notice::Unregister(run) => self.engine.unregister(self.mm, run),
                }
            }
        }
        self.engine.advance(self.began.elapsed());
        while let Some((mm, id, order)) = self.engine.take_order() {
            let arena = match &order {
                Order::Map { arena, .. } | Order::Remap { arena, .. } => {
                    self.engine.store().descriptor(*arena)
                }
                _ => None,
            };
            let report = self.agent.handle(&order.borrow(), arena, &mut self.report);
            self.engine.report(mm, id, &report, &self.donation)?;
        }
        Ok(())
    }

    /// How long there is nothing to do.
    pub(super) fn time_to_wake(&self) -> Duration {
        let due = self.engine.wake_at();
        due.map_or(IDLE, |due| {
            due.saturating_sub(self.began.elapsed()).min(IDLE)
        })
    }

    /// Makes every page private and plain again.
    pub(super) fn release_everything(&self, userfaults: &Userfaults) {
        while let Some(run) = self.space.first_registered(PageRun::EVERYTHING) {
            let release = Release::Unmerge(Some(userfaults));
            if let Err(error) = self.space.unregister(run, release) {
                log::warn!("pages stay merged: {error}");
                return;
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.space.remove_own_range(self.report.run());
    }
}

/// The donation buffer: written by our own agent.
#[derive(Debug)]
struct Donated(OwnedFd);

impl Donation for Donated {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        let into = into.as_flattened_mut();
        let read = rustix::io::pread(&self.0, &mut into[..], (first * PAGE_SIZE) as u64);
        debug_assert_eq!(read, Ok(into.len()));
    }
}
