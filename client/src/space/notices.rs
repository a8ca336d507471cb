//! What the daemon has yet to be told about registrations.
//!
//! A queue of fixed length. When it overflows, or when a connection is new, the region table itself is sent: first that
//! nothing is registered, then every region. What happens meanwhile queues up behind it.

use super::regions::RunTable;
use ksm_engine::page::{PAGE_LIMIT, PageRun};
use zerocopy::FromZeros;

const CAPACITY: usize = 1024;

/// A change of what is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// These pages are registered.
    Register(PageRun),
    /// These pages are not registered (any more).
    Unregister(PageRun),
}

#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Entry {
    run: PageRun,
    register: u64,
}

/// What the agent finds to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Notice(Notice),
    /// Nothing that was queued before the mark.
    Nothing,
    /// The app is in the way.
    InTheWay,
}

/// A place in the queue: its end at some time.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

/// The queue. All-zero bytes are an empty one.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Notices {
    entries: [Entry; CAPACITY],
    /// Entries taken and entries put, ever.
    taken: usize,
    put: usize,
    /// Everything is being sent again: the regions from this page on are still to come.
    resend_from: u64,
    resend: u8,
    resend_head: u8,
}

impl Notices {
    /// Adds a notice.
    pub fn push(&mut self, notice: Notice) {
        if self.put - self.taken == CAPACITY {
            self.resend_all();
            return;
        }
        let (run, register) = match notice {
            Notice::Register(run) => (run, 1),
            Notice::Unregister(run) => (run, 0),
        };
        if let Some(entry) = self.entries.get_mut(self.put % CAPACITY) {
            *entry = Entry { run, register };
        }
        self.put += 1;
    }

    /// Starts again from the regions.
    pub fn resend_all(&mut self) {
        self.taken = self.put;
        self.resend_from = 0;
        self.resend = 1;
        self.resend_head = 1;
    }

    /// The end of the queue.
    pub fn mark(&self) -> Mark {
        Mark(self.put)
    }

    /// Whether all that was queued before the mark has been taken.
    pub fn has_passed(&self, mark: Mark) -> bool {
        self.resend == 0 && self.resend_head == 0 && self.taken >= mark.0
    }

    /// Takes the next notice.
    pub fn pop<const N: usize>(&mut self, regions: &RunTable<N>) -> Option<Notice> {
        if self.resend_head != 0 {
            self.resend_head = 0;
            return Some(Notice::Unregister(PageRun::EVERYTHING));
        }
        if self.resend != 0 {
            let rest = PageRun::between(self.resend_from, PAGE_LIMIT);
            if let Some(run) = regions.first(rest) {
                self.resend_from = run.end();
                return Some(Notice::Register(run));
            }
            self.resend = 0;
        }
        if self.taken == self.put {
            return None;
        }
        let entry = *self.entries.get(self.taken % CAPACITY)?;
        self.taken += 1;
        Some(if entry.register != 0 {
            Notice::Register(entry.run)
        } else {
            Notice::Unregister(entry.run)
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.has_passed(self.mark())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Placed;
    use std::collections::BTreeSet;

    #[test]
    fn an_overflow_still_tells_the_daemon_what_is_registered() {
        let mut notices = Placed::<Notices>::new().expect("memory");
        let mut regions = RunTable::<4096>::new_zeroed();
        let mut told = BTreeSet::new();
        let mut tell = |notice| match notice {
            Notice::Register(run) => told.extend(run.start..run.end()),
            Notice::Unregister(run) => told.retain(|page| !run.contains(*page)),
        };
        for page in 0..3000_u64 {
            let run = PageRun {
                start: page * 2,
                len: 1,
            };
            regions.insert(run).expect("room");
            notices.push(Notice::Register(run));
            if page == 2500 {
                // Some way into the resending, things change on both sides of it.
                for _ in 0..100 {
                    tell(notices.pop(&regions).expect("there are some"));
                }
                for gone in [10, 4000] {
                    let run = PageRun {
                        start: gone,
                        len: 1,
                    };
                    regions.remove(run).expect("room");
                    notices.push(Notice::Unregister(run));
                }
            }
        }
        while let Some(notice) = notices.pop(&regions) {
            tell(notice);
        }
        assert!(notices.is_empty());
        let registered: BTreeSet<u64> = regions
            .runs()
            .iter()
            .flat_map(|r| r.start..r.end())
            .collect();
        assert_eq!(told, registered);
    }
}
