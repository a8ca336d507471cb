//! An app in miniature: memory, a sealed arena, and an agent that is driven from the test.
#![allow(dead_code, reason = "each test uses its part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod sys;

use ksm_client::agent::Agent;
use ksm_client::agent::report::ReportBuffer;
use ksm_client::space::Space;
use ksm_client::space::notices::{Next, Notice};
use ksm_client::sys::memory::Placed;
use ksm_client::sys::uffd::Userfaults;
use ksm_engine::digest::Salt;
use ksm_engine::order::{
    DONATION_PAGES, MapRun, OrderRef, Outcome, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, PAGE_SIZE, PageBytes, PageRun, Slot};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use sys::Memory;

pub const SALT: Salt = Salt([7; 32]);

/// The agent of this test, and what it works with.
pub struct Rig {
    pub space: &'static Space,
    pub agent: Agent,
    pub userfaults: Userfaults,
    pub donation: OwnedFd,
    out: Placed<ReportBuffer>,
}

impl Rig {
    /// One that tracks writes.
    pub fn new() -> Self {
        let rig = Self::untracked();
        rig.space.track_writes();
        rig
    }

    pub fn untracked() -> Self {
        let space = Space::create().unwrap();
        let device = open(
            c"/dev/userfaultfd",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        let userfaults = Userfaults::new(Some(device.as_fd())).unwrap();
        let donation = memfd(DONATION_PAGES);
        let agent = Agent::new(
            space,
            userfaults.try_clone().unwrap(),
            std::process::id(),
            donation.as_fd(),
            SALT,
        )
        .unwrap();
        Self {
            space,
            agent,
            userfaults,
            donation,
            out: Placed::new().unwrap(),
        }
    }

    /// Another agent takes over, as after a restart.
    pub fn replace_agent(&mut self) {
        let userfaults = self.userfaults.try_clone().unwrap();
        let (space, donation) = (self.space, self.donation.as_fd());
        self.agent = Agent::new(space, userfaults, std::process::id(), donation, SALT).unwrap();
    }

    /// Registered memory, each page of which `fill` has filled.
    pub fn memory(&self, pages: usize, fill: impl Fn(usize) -> PageBytes) -> Memory {
        let memory = Memory::map(pages);
        for page in 0..pages {
            memory.write(page, &fill(page));
        }
        self.space.register(memory.run()).unwrap();
        memory
    }

    /// Does an order; `armed` says so for as long as it takes.
    pub fn handle(
        &mut self,
        order: &OrderRef<'_>,
        arena: Option<BorrowedFd<'_>>,
        armed: &AtomicBool,
    ) {
        armed.store(true, Ordering::Release);
        self.agent.handle(order, arena, &mut self.out);
        armed.store(false, Ordering::Release);
    }

    /// Does an order that has outcomes; one for each page.
    pub fn outcomes(&mut self, order: &OrderRef<'_>, arena: Option<&Arena>) -> Vec<Outcome> {
        let arena = arena.map(|arena| arena.fd.as_fd());
        match self.agent.handle(order, arena, &mut self.out) {
            ReportRef::Done { outcomes } => outcomes
                .iter()
                .flat_map(|run| {
                    let outcome = Outcome::from_number(run.outcome).unwrap();
                    std::iter::repeat_n(outcome, run.len as usize)
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Maps pages `first..first + count` of the memory to the slots from `slot` on.
    pub fn map(
        &mut self,
        memory: &Memory,
        first: usize,
        count: u32,
        arena: &Arena,
        slot: u32,
    ) -> Vec<Outcome> {
        let runs = [MapRun {
            start: memory.run().start + first as u64,
            len: count,
            slot,
        }];
        let order = OrderRef::Map {
            arena: arena.id,
            runs: &runs,
        };
        self.outcomes(&order, Some(arena))
    }

    /// Merges all of it, which must succeed.
    pub fn merge(&mut self, memory: &Memory, arena: &Arena) {
        let count = memory.run().len.try_into().unwrap();
        let outcomes = self.map(memory, 0, count, arena, 0);
        assert!(outcomes.iter().all(|o| *o == Outcome::Done), "{outcomes:?}");
    }

    pub fn remap(&mut self, memory: &Memory, arena: &Arena) -> Vec<Outcome> {
        let runs = [MapRun {
            start: memory.run().start,
            len: memory.run().len.try_into().unwrap(),
            slot: 0,
        }];
        let order = OrderRef::Remap {
            arena: arena.id,
            runs: &runs,
        };
        self.outcomes(&order, Some(arena))
    }

    /// What a visit finds, by page: its number in the range, the state, the slot, the digest if there is one.
    pub fn visit(&mut self, range: PageRun) -> Vec<(u64, VisitState, Option<Slot>)> {
        self.visit_with(range, 2048, &[]).1
    }

    #[expect(clippy::type_complexity, reason = "spelt out once, for tests")]
    pub fn visit_with(
        &mut self,
        range: PageRun,
        limit: u32,
        skip: &[PageRun],
    ) -> (u64, Vec<(u64, VisitState, Option<Slot>)>, Vec<Digest>, u64) {
        let order = OrderRef::Visit {
            range,
            limit,
            skip,
            nodes: false,
            brief: false,
        };
        let ReportRef::Visited {
            end,
            zero_pages,
            runs,
            digests,
        } = self.agent.handle(&order, None, &mut self.out)
        else {
            panic!("a visit is answered by a visit");
        };
        let mut pages = Vec::new();
        for run in runs {
            let state = run.found().unwrap();
            for i in 0..run.len {
                let slot = (state == VisitState::Merged).then_some(Slot {
                    arena: run.slot.arena,
                    index: run.slot.index + i,
                });
                pages.push((run.start + u64::from(i) - range.start, state, slot));
            }
        }
        (end, pages, digests.to_vec(), zero_pages)
    }

    /// The NUMA node of each page, as a visit says it.
    pub fn nodes(&mut self, range: PageRun) -> Vec<u16> {
        let order = OrderRef::Visit {
            range,
            limit: 2048,
            skip: &[],
            nodes: true,
            brief: false,
        };
        let ReportRef::Visited { runs, .. } = self.agent.handle(&order, None, &mut self.out) else {
            panic!("a visit is answered by a visit");
        };
        let nodes = |run: &VisitRun| vec![run.node().0; usize::try_from(run.len).unwrap()];
        runs.iter().flat_map(nodes).collect()
    }

    /// For how many pages a visit says that a fork shares their frames.
    pub fn shared_frames(&mut self, range: PageRun) -> u64 {
        let (limit, skip) = (2048, &[][..]);
        let order = OrderRef::Visit {
            range,
            limit,
            skip,
            nodes: false,
            brief: false,
        };
        match self.agent.handle(&order, None, &mut self.out) {
            ReportRef::Visited { runs, .. } => {
                let shared = runs.iter().filter(|run| run.shares_frames());
                shared.map(|run| u64::from(run.len)).sum()
            }
            _ => panic!("a visit is answered by a visit"),
        }
    }

    /// How many pages a visit that may sum up says are as they were, and what it says of the others.
    pub fn news(&mut self, range: PageRun) -> (u64, Vec<(u64, VisitState)>) {
        let order = OrderRef::Visit {
            range,
            limit: ksm_engine::order::MOST_VISITED,
            skip: &[],
            nodes: false,
            brief: true,
        };
        let ReportRef::Visited { end, runs, .. } = self.agent.handle(&order, None, &mut self.out)
        else {
            panic!("a visit is answered by a visit");
        };
        assert_eq!(end, range.end());
        let (mut unchanged, mut news) = (0, Vec::new());
        for run in runs {
            match run.found().unwrap() {
                VisitState::Unchanged => unchanged += run.counted(),
                state => news
                    .extend((run.start..run.pages().end()).map(|page| (page - range.start, state))),
            }
        }
        (unchanged, news)
    }

    pub fn states(&mut self, range: PageRun) -> Vec<VisitState> {
        self.visit(range)
            .into_iter()
            .map(|(_, state, _)| state)
            .collect()
    }

    /// All that the daemon is to be told.
    pub fn notices(&self) -> Vec<Notice> {
        let end = self.space.end_of_notices().expect("nobody is in the way");
        let next = || match self.space.next_notice(end) {
            Next::Notice(notice) => Some(notice),
            Next::Nothing | Next::InTheWay => None,
        };
        std::iter::from_fn(next).collect()
    }

    pub fn unmerge(&mut self, range: PageRun) -> u64 {
        match self
            .agent
            .handle(&OrderRef::Unmerge { range }, None, &mut self.out)
        {
            ReportRef::Unmerged { end } => end,
            other => panic!("{other:?}"),
        }
    }
}

/// A sealed arena, filled at once.
pub struct Arena {
    pub id: ArenaId,
    pub fd: OwnedFd,
}

impl Arena {
    pub fn new(id: u32, pages: usize, fill: impl Fn(usize) -> PageBytes) -> Self {
        let fd = Self::unsealed(pages, fill);
        fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE).unwrap();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Self {
            id: ArenaId(id),
            fd,
        }
    }

    pub fn unsealed(pages: usize, fill: impl Fn(usize) -> PageBytes) -> OwnedFd {
        let fd = memfd(pages);
        for page in 0..pages {
            rustix::io::pwrite(&fd, &fill(page), (page * PAGE_SIZE) as u64).unwrap();
        }
        fd
    }
}

/// A file on a disk, opened for direct I/O, with the pages given.
pub fn direct_file(pages: usize, fill: impl Fn(usize) -> PageBytes) -> std::fs::File {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    // Next to the built tests: /tmp may be a file system without direct I/O.
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for page in 0..pages {
        let offset = (page * PAGE_SIZE) as u64;
        file.as_file().write_all_at(&fill(page), offset).unwrap();
    }
    file.as_file().sync_all().unwrap();
    let mut options = std::fs::OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(file.path()).unwrap()
}

pub fn memfd(pages: usize) -> OwnedFd {
    let fd = memfd_create(c"test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, (pages * PAGE_SIZE) as u64).unwrap();
    fd
}

/// A page whose bytes differ from those of any other seed, everywhere.
/// The nodes in a list like `0-1,3`.
pub fn nodes_online(list: &str) -> Vec<u16> {
    let ranges = list.trim().split(',');
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap()..=last.parse::<u16>().unwrap()
    };
    ranges.flat_map(range).collect()
}

pub fn page(seed: usize) -> PageBytes {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
}

pub fn memfd_with(bytes: &PageBytes) -> OwnedFd {
    Arena::unsealed(1, |_| *bytes)
}
