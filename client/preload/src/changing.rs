//! Holding the agent off while the app changes its mappings.

use crate::sandbox;
use crate::sys::call::Quiet;
use ksm_client::Client;
use ksm_client::space::Space;
use ksm_client::space::change::Change;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// A [`Change`], with the signals of this thread blocked around it.
#[derive(Debug)]
pub struct Changing {
    // In the order of dropping.
    change: Held,
    _quiet: Quiet,
}

/// The lock may be that of a fork, which the handler at its end lets go.
#[derive(Debug)]
enum Held {
    Own(Change<'static>),
    OfFork(ManuallyDrop<Change<'static>>),
}

impl Changing {
    /// Begins one. `None` if nothing was ever registered in this process: then there is nobody to hold off.
    #[inline]
    pub fn begin() -> Option<Self> {
        let space = Space::get()?;
        let quiet = Quiet::begin();
        let change = if ksm_client::is_forking_here() {
            Held::OfFork(ManuallyDrop::new(space.change_while_forking()))
        } else {
            Held::Own(space.change())
        };
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
        let is_own = matches!(changing.change, Held::Own(_));
        let Some(client) =
            Client::current().filter(|_| is_own && changing.first_in_file(run).is_some())
        else {
            return Ok(Some(changing));
        };
        drop(changing);
        if sandbox::is_entered() {
            return Err(Errno::NOMEM);
        }
        let quiet = Quiet::begin();
        let change = client.change_unmerged(run)?;
        Ok(Some(Self {
            change: Held::Own(change),
            _quiet: quiet,
        }))
    }

    /// Makes pages ready for what the kernel does not do where writes are tracked.
    pub fn end_tracking(&mut self, run: PageRun) {
        if self.first_registered(run).is_some()
            && !sandbox::is_entered()
            && let Some(client) = Client::current()
        {
            client.end_tracking(self, run);
        }
    }

    /// Ends it, and waits until the daemon was told of what is new.
    pub fn end_announced(self) {
        drop(self);
        if !sandbox::is_entered()
            && let Some(client) = Client::current()
        {
            client.announce();
        }
    }

    /// Ends it, and has the daemon told of what is new.
    pub fn end(self) {
        let is_news = self.is_news();
        drop(self);
        if is_news
            && !sandbox::is_entered()
            && let Some(client) = Client::current()
        {
            client.nudge();
        }
    }
}

impl Deref for Changing {
    type Target = Change<'static>;

    fn deref(&self) -> &Self::Target {
        match &self.change {
            Held::Own(change) => change,
            Held::OfFork(change) => change,
        }
    }
}

impl DerefMut for Changing {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut self.change {
            Held::Own(change) => change,
            Held::OfFork(change) => change,
        }
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
