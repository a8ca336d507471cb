//! Holding the agent off while the app changes its mappings.

use crate::sys::call::Quiet;
use ksm_client::Client;
use ksm_client::space::Space;
use ksm_client::space::change::Change;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;
use std::ops::{Deref, DerefMut};

/// A [`Change`], with the signals of this thread blocked around it.
#[derive(Debug)]
pub struct Changing {
    // In the order of dropping.
    change: Change<'static>,
    _quiet: Quiet,
}

impl Changing {
    /// Begins one. `None` if nothing was ever registered in this process: then there is nobody to hold off.
    #[inline]
    pub fn begin() -> Option<Self> {
        let space = Space::get()?;
        let quiet = Quiet::begin();
        let change = space.change();
        Some(Self {
            change,
            _quiet: quiet,
        })
    }

    /// The same with no page of `run` merged.
    pub fn begin_unmerged(run: PageRun) -> Result<Option<Self>, Errno> {
        let Some(changing) = Self::begin() else {
            return Ok(None);
        };
        let Some(client) = Client::current().filter(|_| changing.first_in_file(run).is_some())
        else {
            return Ok(Some(changing));
        };
        drop(changing);
        let quiet = Quiet::begin();
        let change = client.change_unmerged(run)?;
        Ok(Some(Self {
            change,
            _quiet: quiet,
        }))
    }

    /// Ends it, and has the daemon told of what is new.
    pub fn end(self) {
        let is_news = self.is_news();
        drop(self);
        if is_news && let Some(client) = Client::current() {
            client.nudge();
        }
    }
}

impl Deref for Changing {
    type Target = Change<'static>;

    fn deref(&self) -> &Self::Target {
        &self.change
    }
}

impl DerefMut for Changing {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.change
    }
}

/// The pages that a call acts on which starts at a page and takes a length in bytes; empty if there are none, or if they
/// are no range of memory.
pub fn pages(start: usize, len: usize) -> PageRun {
    let first = (start / PAGE_SIZE) as u64;
    let Some(end) = start.checked_add(len) else {
        return PageRun::between(first, first);
    };
    PageRun::between(first, end.div_ceil(PAGE_SIZE) as u64)
}
