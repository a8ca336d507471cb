//! How the app wants the kernel to treat ranges of its memory: not in children, not in core dumps, wiped in children.
//!
//! That is a property of the kernel's mappings, and merging puts other mappings in their place. So it is noted here,
//! and said again to every mapping that we put there. A file mapping cannot be wiped on fork: such ranges are not merged.

use super::Tables;
use super::regions::RunTable;
use crate::sys::remap::{self, AppPages};
use ksm_engine::page::PageRun;
use rustix::mm::Advice;
use zerocopy::FromZeros;

/// Ranges of each kind.
const RANGES: usize = 256;

/// A treatment that the kernel gives by default is not noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// `MADV_DONTFORK`.
    NotInChildren,
    /// `MADV_DONTDUMP`.
    NotInDumps,
    /// `MADV_WIPEONFORK`.
    WipedInChildren,
}

/// All such ranges.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub(super) struct Treatments {
    not_in_children: RunTable<RANGES>,
    not_in_dumps: RunTable<RANGES>,
    pub(super) wiped_in_children: RunTable<RANGES>,
}

impl Treatments {
    fn table(&mut self, of: Treatment) -> &mut RunTable<RANGES> {
        match of {
            Treatment::NotInChildren => &mut self.not_in_children,
            Treatment::NotInDumps => &mut self.not_in_dumps,
            Treatment::WipedInChildren => &mut self.wiped_in_children,
        }
    }

    /// Says it again to what has taken the place of the pages.
    pub(super) fn renew(&self, run: PageRun) {
        let noted = [
            (&self.not_in_children, Advice::LinuxDontFork),
            (&self.not_in_dumps, Advice::LinuxDontDump),
        ];
        for (table, advice) in noted {
            let mut rest = run;
            while let Some(part) = table.first(rest) {
                // Fails only for want of a mapping more, of which there always is a reserve.
                let _ = remap::advise(AppPages::vouched_for(part), advice);
                rest = PageRun::between(part.end(), run.end());
            }
        }
    }
}

const EACH: [Treatment; 3] = [
    Treatment::NotInChildren,
    Treatment::NotInDumps,
    Treatment::WipedInChildren,
];

impl Tables {
    /// Notes a treatment, or that it has ended. Where there is no room to note it the range is never merged.
    pub(super) fn treat(&mut self, run: PageRun, treatment: Treatment, is_on: bool) {
        let table = self.treatments.table(treatment);
        let noted = if is_on {
            table.insert(run)
        } else {
            table.remove(run)
        };
        if noted.is_err() {
            self.remove_region(run);
            // A full table of our own leaves nothing else to try.
            let _ = self.own.insert(run);
        }
        if is_on && treatment == Treatment::WipedInChildren {
            self.remove_region(run);
        }
    }

    /// The mappings are gone, and with them what was asked for.
    pub(super) fn forget_treatment(&mut self, run: PageRun) {
        for treatment in EACH {
            // Without room for a split, what is mapped there later is kept from children or dumps where we merge it.
            let _ = self.treatments.table(treatment).remove(run);
        }
    }

    /// The mappings of `old` have been moved to the pages from `to` on.
    pub(super) fn move_treatment(&mut self, old: PageRun, to: u64) {
        for treatment in EACH {
            let mut rest = old;
            while let Some(part) = self.treatments.table(treatment).first(rest) {
                let there = PageRun {
                    start: to + (part.start - old.start),
                    ..part
                };
                self.treat(there, treatment, true);
                rest = PageRun::between(part.end(), old.end());
            }
        }
    }

    /// In a child: what was not for it is not there.
    pub(super) fn forget_what_was_not_inherited(&mut self) {
        while let Some(run) = self.treatments.not_in_children.runs().first().copied() {
            self.remove_region(run);
            self.forget_states(run);
            self.forget_treatment(run);
            if self.treatments.not_in_children.runs().first() == Some(&run) {
                return;
            }
        }
    }
}
