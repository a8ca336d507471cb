//! A process and its agent, as far as reports need them: pages hold a few contents, and the agent remembers what it said.

use super::bytes::Bytes;
use super::store::Store;
use ksm_engine::engine::Engine;
use ksm_engine::order::{Donation, OutcomeRun, VisitRun, VisitState};
use ksm_engine::page::{ArenaId, Digest, DomainId, MmId, PAGE_SIZE, PageBytes, PageRun, Slot};
use std::collections::HashMap;

pub const SECRET: [u8; 32] = [1; 32];
pub const DOMAINS: u32 = 2;
pub const CONTENTS: usize = 8;

thread_local! {
    /// Digests of all contents in all domains: hashing is all that would be seen in a profile.
    static DIGESTS: Vec<[Digest; CONTENTS]> = digests();
}

fn digests() -> Vec<[Digest; CONTENTS]> {
    let engine = Engine::new(Store::new(1), SECRET);
    let salts = (0..DOMAINS).map(|domain| engine.salt(DomainId(domain)));
    salts
        .map(|salt| std::array::from_fn(|content| salt.digest(&bytes_of(content))))
        .collect()
}

fn bytes_of(content: usize) -> PageBytes {
    [u8::try_from(content).expect("few"); PAGE_SIZE]
}

/// The contents in the donation buffer.
pub struct Donated(pub Vec<usize>);

impl Donation for Donated {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        for (index, page) in (first..).zip(into) {
            *page = bytes_of(self.0.get(index).copied().unwrap_or(0));
        }
    }
}

/// What the daemon knows of a process, and what its agent remembers.
pub struct Mm {
    pub id: MmId,
    pub domain: DomainId,
    /// What was last said to be in a page.
    pub told: HashMap<u64, usize>,
    pub mapped: HashMap<u64, Slot>,
}

/// Done, more often than not.
pub fn outcome(page: u64, byte: u8) -> OutcomeRun {
    let outcome = if byte < 0xc0 { 0 } else { u32::from(byte % 12) };
    OutcomeRun {
        start: page,
        len: 1,
        outcome,
    }
}

impl Mm {
    /// What an agent finds: in each byte the state of a page, what it holds, and how many pages are like it.
    pub fn visit(
        &mut self,
        range: PageRun,
        limit: u32,
        nodes: bool,
        bytes: &mut Bytes<'_>,
        runs: &mut Vec<VisitRun>,
        digests: &mut Vec<Digest>,
    ) -> u64 {
        let mut page = range.start;
        let mut left = limit.min(256);
        let known = usize::try_from(self.domain.0).expect("few");
        while page < range.end() && left > 0 {
            let how = bytes.byte();
            let content = usize::from(how >> 2 & 7);
            let alike = 1 + u64::from(how >> 5);
            let len = alike.min(range.end() - page).min(left.into());
            let kind = how & 3;
            let len = u32::try_from(len).expect("few");
            let (state, slot) = match (kind, self.mapped.get(&page)) {
                (0 | 1, _) if content == 0 && how >> 5 & 1 == 0 => (VisitState::CalmZero, None),
                (0 | 1, _) => (VisitState::Calm, None),
                (2, Some(slot)) => (VisitState::Merged, Some(*slot)),
                (2, None) => (VisitState::Changed, None),
                _ => match content {
                    0 => (VisitState::CalmKnown, None),
                    1 => (VisitState::Skipped, None),
                    2 => (VisitState::Unsure, None),
                    3 => (VisitState::Foreign, None),
                    4 => (VisitState::Changed, None),
                    // Nothing is there.
                    _ => {
                        page += u64::from(len);
                        left -= 1;
                        continue;
                    }
                },
            };
            let len = if state == VisitState::Merged { 1 } else { len };
            if state == VisitState::Calm {
                DIGESTS.with(|all| digests.extend((0..len).map(|_| all[known][content])));
                self.told
                    .extend((page..page + u64::from(len)).map(|page| (page, content)));
            }
            let node = if nodes { u32::from(how >> 6 & 1) } else { 0 };
            runs.push(VisitRun {
                start: page,
                len,
                state: state as u32,
                slot: slot.unwrap_or(Slot {
                    arena: ArenaId(0),
                    index: node,
                }),
            });
            page += u64::from(len);
            left -= len;
        }
        page
    }
}
