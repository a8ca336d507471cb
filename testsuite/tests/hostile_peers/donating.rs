//! An honest process, and when it is asked to donate: never while its buffer is emptied, nor is that done while it donates.

use crate::agent::Agent;
use crate::attacks::{NOWHERE, PAGE, all_done, run, visited};
use crate::locks::{Held, waits_for_a_lock};
use ksm_engine::order::{MapRun, Order, OrderId, VisitState};
use ksm_engine::page::{PAGE_SIZE, PageRun, Slot};
use std::os::fd::{AsFd, OwnedFd};
use testsuite::content;
use testsuite::daemon::Daemon;
use testsuite::wait::{until, until_true};

const KIT: &str = env!("CARGO_BIN_EXE_kit");

/// An order to donate.
struct ToDonate(OrderId, Vec<PageRun>);

/// A process that owns no memory and does as it is told, but for donations: these are the test's to make.
struct Honest {
    agent: Agent,
    buffer: OwnedFd,
    /// What its pages hold, from `PAGE` on, and where they are mapped.
    pages: Vec<(u64, Option<Slot>)>,
    visited: bool,
}

impl Honest {
    fn join(daemon: &Daemon, pages: &[u64]) -> Self {
        let mut agent = Agent::join(&daemon.socket());
        let buffer = agent.descriptors[0].as_fd().try_clone_to_owned().unwrap();
        agent.register(PAGE, pages.len() as u64);
        Self {
            agent,
            buffer,
            pages: pages.iter().map(|content| (*content, None)).collect(),
            visited: false,
        }
    }

    /// From now on these pages hold the same.
    fn fill(&mut self, pages: std::ops::Range<usize>, content: u64) {
        self.pages[pages].fill((content, None));
    }

    fn page(&mut self, page: u64) -> &mut (u64, Option<Slot>) {
        &mut self.pages[usize::try_from(page - PAGE).unwrap()]
    }

    fn bytes(&mut self, page: u64) -> [u8; PAGE_SIZE] {
        content::page(self.page(page).0).try_into().unwrap()
    }

    fn is_merged(&self, pages: std::ops::Range<usize>) -> bool {
        self.pages[pages].iter().all(|(_, slot)| slot.is_some())
    }

    /// Carries an order out, if one has come; returns one to donate instead.
    fn follow(&mut self) -> Option<ToDonate> {
        let (id, order) = self.agent.order_if_any()?;
        match order {
            Order::Visit { range, .. } => self.visit(id, range),
            Order::Map { arena, runs } => {
                for run in &runs {
                    for (index, page) in (run.slot..).zip(run.start..run.pages().end()) {
                        let mut bytes = [0; PAGE_SIZE];
                        let at = u64::from(index) * PAGE_SIZE as u64;
                        let arena_file = &self.agent.descriptors[0];
                        rustix::io::pread(arena_file, &mut bytes, at).unwrap();
                        assert!(bytes == self.bytes(page), "page {page:#x}");
                        self.page(page).1 = Some(Slot { arena, index });
                    }
                }
                let runs: Vec<_> = runs.iter().map(MapRun::pages).collect();
                all_done(&mut self.agent, id, &runs);
            }
            Order::Donate { runs } => return Some(ToDonate(id, runs)),
            order => panic!("{order:?}"),
        }
        None
    }

    fn visit(&mut self, id: OrderId, range: PageRun) {
        let (mut runs, mut digests) = (Vec::new(), Vec::new());
        for page in range.start..range.end() {
            let one = PageRun {
                start: page,
                len: 1,
            };
            let (slot, again) = (self.page(page).1, self.visited);
            runs.push(match slot {
                Some(slot) => run(one, VisitState::Merged, slot),
                None if again => {
                    let bytes = self.bytes(page);
                    digests.push(self.agent.salt.unwrap().digest(&bytes));
                    run(one, VisitState::Calm, NOWHERE)
                }
                None => run(one, VisitState::Changed, NOWHERE),
            });
        }
        self.visited = true;
        visited(&mut self.agent, id, range.end(), &runs, &digests);
    }

    fn write(&mut self, ToDonate(_, runs): &ToDonate) {
        let pages = runs.iter().flat_map(|run| run.start..run.end());
        for (place, page) in (0u64..).zip(pages) {
            let at = place * PAGE_SIZE as u64;
            let bytes = self.bytes(page);
            rustix::io::pwrite(&self.buffer, &bytes, at).unwrap();
        }
    }

    fn says_done(&mut self, ToDonate(id, runs): &ToDonate) {
        all_done(&mut self.agent, *id, runs);
    }

    /// The memory of its buffer.
    fn blocks(&self) -> i64 {
        rustix::fs::fstat(&self.buffer).unwrap().st_blocks
    }
}

/// Two processes of one user, of which the first one has two equal pages and is ordered to donate one of them.
fn stage() -> (Daemon, Honest, Honest, ToDonate) {
    let daemon = Daemon::start(KIT);
    daemon.scan_fast();
    let mut first = Honest::join(&daemon, &[1, 1, 2, 3]);
    let mut second = Honest::join(&daemon, &[4, 5]);
    let order = until("an order to donate", || {
        assert!(second.follow().is_none());
        first.follow()
    });
    first.write(&order);
    (daemon, first, second, order)
}

#[test]
fn who_holds_up_the_emptying_of_his_buffer_is_not_asked_to_donate() {
    let (daemon, mut first, mut second, order) = stage();
    let held = Held::take(&first.buffer);
    first.says_done(&order);
    until_true("the memory to be given back", || {
        assert!(first.follow().is_none() && second.follow().is_none());
        waits_for_a_lock(daemon.pid())
    });
    // The order of the first one would come first.
    first.fill(2..4, 6);
    second.fill(0..2, 7);
    let order = until("the other to be asked", || {
        assert!(first.follow().is_none(), "asked to donate");
        second.follow()
    });
    while !first.agent.hear_would_wait() {
        assert!(first.follow().is_none(), "asked to donate");
    }
    drop(held);
    second.write(&order);
    second.says_done(&order);
    let order = until("an order to donate", || {
        assert!(second.follow().is_none());
        first.follow()
    });
    first.write(&order);
    first.says_done(&order);
    until_true("all to merge", || {
        assert!(first.follow().is_none() && second.follow().is_none());
        first.is_merged(0..4) && second.is_merged(0..2)
    });
}

#[test]
fn no_buffer_is_emptied_while_its_process_donates() {
    let (_daemon, mut first, mut second, order) = stage();
    let empty = second.blocks();
    // In one batch; before the memory of the first donation is given back, unless this machine is slow.
    first.fill(2..4, 6);
    second.fill(0..2, 7);
    first.says_done(&order);
    let (mut of_first, mut of_second) = (None, None);
    until_true("both to be asked", || {
        of_first = of_first.take().or_else(|| first.follow());
        of_second = of_second.take().or_else(|| second.follow());
        of_first.is_some() && of_second.is_some()
    });
    let (of_first, of_second) = (of_first.unwrap(), of_second.unwrap());
    first.write(&of_first);
    let full = first.blocks();
    second.write(&of_second);
    second.says_done(&of_second);
    // That of the first one, which has donated before, would be given back before.
    until_true("the memory of the other to be given back", || {
        assert!(second.follow().is_none());
        second.blocks() == empty
    });
    assert_eq!(first.blocks(), full);
    first.says_done(&of_first);
    until_true("all to merge", || {
        assert!(first.follow().is_none() && second.follow().is_none());
        first.is_merged(0..4) && second.is_merged(0..2)
    });
}
