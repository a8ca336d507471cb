//! A model process: its pages, what it wrote to them, and what its agent remembers.

use super::arenas::{Arenas, Frame, Key};
use super::{Content, Mood};
use ksm_engine::order::{Order, OrderId, Outcome, VisitState};
use ksm_engine::page::{ArenaId, DomainId, MmId, NumaNode, PageRun, Slot};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// What is mapped at a page. A page that is not in the map was never touched, or discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Only read so far: the zero page, which the kernel put there by itself.
    ReadOnce,
    /// Anonymous memory.
    Private(Content),
    /// A slot.
    Merged {
        /// Which one.
        frame: Frame,
    },
    /// A merged page that was written to.
    Broken(Content),
    /// The zero page, put there by an order.
    Zeroed,
}

/// Pages of a huge page.
const HUGE: u64 = 512;

/// What the agent remembers of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What it held at the last visit.
    pub(crate) content: Content,
    /// The digest of that was reported.
    pub(crate) told: bool,
    /// And the agent knows it.
    pub(crate) known: bool,
    /// The node that was reported, if it was asked for.
    pub(crate) node: Option<NumaNode>,
}

/// A message on its way to the daemon. A report says when its order was given.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// Arenas that are mapped, and whether a descriptor comes along.
    Holds(Vec<(Key, bool)>),
    Register(PageRun),
    Unregister(PageRun),
    Report(OrderId, super::agent::Answer, Duration),
}

/// The agent's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) mm: MmId,
    /// The same in all that the daemon knows to be related.
    pub(crate) family: u64,
    /// Orders, and when they were given.
    pub(crate) orders: VecDeque<(OrderId, Order, Duration)>,
    pub(crate) messages: VecDeque<Message>,
}

/// A process. Its address space is a range of page numbers.
#[derive(Debug)]
pub struct Process {
    /// Tells processes apart in messages.
    pub(crate) pid: u32,
    pub(crate) domain: DomainId,
    pub(crate) pages: BTreeMap<u64, Page>,
    /// What the app wrote and not discarded since.
    pub(crate) wrote: BTreeMap<u64, Content>,
    pub(crate) mergeable: BTreeSet<u64>,
    /// NUMA nodes of pages, where it is not node 0.
    pub(crate) nodes: BTreeMap<u64, NumaNode>,
    /// Pages that a device may write to.
    pub(crate) pinned: BTreeSet<u64>,
    /// It may have pins that nobody can see.
    pub(crate) may_pin: bool,
    pub(crate) seen: BTreeMap<u64, Seen>,
    /// What was said of pages at their last visit, and the slot of merged ones.
    pub(crate) said: BTreeMap<u64, (VisitState, u32, Slot)>,
    /// Its agent never sums up.
    pub(crate) is_wordy: bool,
    pub(crate) connection: Option<Connection>,
    pub(crate) donation: Rc<RefCell<Vec<Content>>>,
    /// How the agent takes its next order.
    pub(crate) mood: Mood,
    /// Its agent has lied; what the engine believes of it means nothing.
    pub(crate) liar: bool,
    /// Its agent has answered after its time was up; the engine may have taken it that merged pages are not.
    pub(crate) late: bool,
    /// What the daemon calls arenas, as far as it has said so over this connection.
    pub(crate) names: BTreeMap<Key, ArenaId>,
    /// Arenas that the daemon is to name.
    pub(crate) asked: BTreeSet<Key>,
    /// Arenas of which the agent has descriptors.
    pub(crate) kept: BTreeSet<Key>,
    /// Merged pages that a fork brought, or another connection, which the engine may not have seen yet.
    pub(crate) inherited: BTreeSet<u64>,
    /// The frames of private pages that were there at a fork, each on one node and shared by those who have not written since.
    pub(crate) frames: BTreeMap<u64, Rc<Cell<NumaNode>>>,
    /// The process that it was forked from.
    pub(crate) parent: Option<u32>,
    /// Numbers of the huge pages that are mapped as a whole.
    pub(crate) huge: BTreeSet<u64>,
}

impl Process {
    pub(crate) fn new(pid: u32, domain: DomainId) -> Self {
        Self {
            pid,
            domain,
            pages: BTreeMap::new(),
            wrote: BTreeMap::new(),
            mergeable: BTreeSet::new(),
            nodes: BTreeMap::new(),
            pinned: BTreeSet::new(),
            may_pin: false,
            seen: BTreeMap::new(),
            said: BTreeMap::new(),
            is_wordy: false,
            connection: None,
            donation: Rc::default(),
            mood: Mood::default(),
            liar: false,
            late: false,
            names: BTreeMap::new(),
            asked: BTreeSet::new(),
            kept: BTreeSet::new(),
            inherited: BTreeSet::new(),
            frames: BTreeMap::new(),
            parent: None,
            huge: BTreeSet::new(),
        }
    }

    /// Its number, which no other process of the host ever has.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the engine calls it, if its agent is connected.
    #[must_use]
    pub fn mm(&self) -> Option<MmId> {
        self.connection.as_ref().map(|connection| connection.mm)
    }

    /// Which of its relatives the daemon knows to be such.
    pub(crate) fn family(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.family)
    }

    /// What `fork` makes of it. Nobody has told the daemon about the child.
    pub(crate) fn fork(&mut self, pid: u32) -> Self {
        for (page, what) in &self.pages {
            if matches!(what, Page::Private(_) | Page::Broken(_)) {
                let node = self.nodes.get(page).copied().unwrap_or_default();
                self.frames
                    .entry(*page)
                    .or_insert_with(|| Rc::new(Cell::new(node)));
            }
        }
        Self {
            frames: self.frames.clone(),
            parent: Some(self.pid),
            pages: self.pages.clone(),
            wrote: self.wrote.clone(),
            mergeable: self.mergeable.clone(),
            nodes: self.nodes.clone(),
            may_pin: self.may_pin,
            huge: self.huge.clone(),
            inherited: self.pages.keys().copied().collect(),
            ..Self::new(pid, self.domain)
        }
    }

    /// Whether the page is part of a huge page.
    #[must_use]
    pub fn is_huge(&self, page: u64) -> bool {
        self.huge.contains(&(page / HUGE))
    }

    /// The kernel gives memory that the app has written to a huge page.
    pub fn make_huge(&mut self, page: u64) {
        self.huge.insert(page / HUGE);
    }

    /// The kernel splits it, and its parts that are zero become the zero page.
    pub(crate) fn split_huge(&mut self, page: u64) {
        let number = page / HUGE;
        if self.huge.remove(&number) {
            let parts = self.pages.range_mut(number * HUGE..(number + 1) * HUGE);
            for (_, part) in parts.filter(|(_, part)| **part == Page::Private(Content::ZERO)) {
                *part = Page::ReadOnce;
            }
        }
    }

    /// Whether a fork shares the page's frame.
    pub(crate) fn shares_frame(&self, page: u64) -> bool {
        self.frames
            .get(&page)
            .is_some_and(|frame| Rc::strong_count(frame) > 1)
    }

    /// The page's mapping, if there is one.
    #[must_use]
    pub fn page(&self, page: u64) -> Option<Page> {
        self.pages.get(&page).copied()
    }

    /// What the app sees when it reads the page.
    pub(crate) fn shows(&self, page: u64, arenas: &Arenas) -> Content {
        match self.pages.get(&page) {
            None | Some(Page::ReadOnce | Page::Zeroed) => Content::ZERO,
            Some(Page::Private(content) | Page::Broken(content)) => *content,
            Some(Page::Merged { frame }) => arenas.content(*frame),
        }
    }

    /// The app writes.
    pub fn write(&mut self, page: u64, content: Content) {
        self.wrote.insert(page, content);
        self.frames.remove(&page);
        let page = self.pages.entry(page).or_insert(Page::ReadOnce);
        *page = match page {
            Page::ReadOnce | Page::Private(_) | Page::Zeroed => Page::Private(content),
            Page::Merged { .. } | Page::Broken(_) => Page::Broken(content),
        };
    }

    /// The kernel moves pages to a node.
    pub fn migrate(&mut self, run: PageRun, node: NumaNode) {
        for page in run.start..run.end() {
            self.nodes.insert(page, node);
            if let Some(frame) = self.frames.get(&page) {
                frame.set(node);
            }
        }
    }

    /// The node that a page is on, unless it is merged.
    #[must_use]
    pub fn node(&self, page: u64) -> NumaNode {
        match self.frames.get(&page) {
            Some(frame) => frame.get(),
            None => self.nodes.get(&page).copied().unwrap_or_default(),
        }
    }

    /// The app reads.
    pub fn read(&mut self, page: u64) {
        self.pages.entry(page).or_insert(Page::ReadOnce);
    }

    /// A device gets hold of the page. That writes to it, as far as the memory management is concerned.
    pub(crate) fn pin(&mut self, page: u64, arenas: &Arenas) {
        let content = self.shows(page, arenas);
        self.write(page, content);
        self.pinned.insert(page);
        self.may_pin = true;
    }

    /// Devices let go of all pages, and it is plain that none has any.
    pub fn unpin(&mut self) {
        self.pinned.clear();
        self.may_pin = false;
    }

    /// `madvise(DONTNEED)`.
    pub fn discard(&mut self, run: PageRun) {
        for page in run.start..run.end() {
            self.pages.remove(&page);
            self.frames.remove(&page);
            self.wrote.remove(&page);
            self.pinned.remove(&page);
            // The agent goes by the address: only what it has told the daemon is forgotten.
            self.seen.entry(page).and_modify(|seen| seen.known = false);
        }
    }

    /// Makes pages private again, and forgets what was seen of them.
    pub(crate) fn unmerge(&mut self, page: u64, arenas: &Arenas) {
        let content = self.shows(page, arenas);
        match self.pages.get_mut(&page) {
            Some(merged @ Page::Merged { .. }) => *merged = Page::Broken(content),
            Some(zero @ Page::Zeroed) => *zero = Page::Private(content),
            Some(Page::ReadOnce | Page::Private(_) | Page::Broken(_)) | None => {}
        }
        self.seen.remove(&page);
        self.said.remove(&page);
    }

    /// Zero pages that orders have placed and that are still there.
    pub(crate) fn zeroed(&self) -> u64 {
        let zeroed = |page: &&Page| **page == Page::Zeroed;
        self.pages.values().filter(zeroed).count() as u64
    }

    /// The arenas that it has mapped, each with whether its agent has a descriptor.
    pub(crate) fn holds(&self) -> Vec<(Key, bool)> {
        let keys: BTreeSet<Key> = self
            .pages
            .values()
            .filter_map(|page| match page {
                Page::Merged { frame } => Some(frame.arena()),
                _ => None,
            })
            .collect();
        keys.into_iter()
            .map(|key| (key, self.kept.contains(&key)))
            .collect()
    }

    /// The daemon names an arena, and gives a descriptor.
    pub(crate) fn learn(&mut self, key: Key, name: ArenaId) {
        self.asked.remove(&key);
        self.names.insert(key, name);
        self.kept.insert(key);
    }

    /// The mergeable pages as runs.
    pub(crate) fn mergeable_runs(&self) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for page in &self.mergeable {
            match runs.last_mut() {
                Some(last) if last.end() == *page => last.len += 1,
                _ => runs.push(PageRun {
                    start: *page,
                    len: 1,
                }),
            }
        }
        runs
    }

    pub(crate) fn tell(&mut self, message: Message) {
        if let Some(connection) = &mut self.connection {
            connection.messages.push_back(message);
        }
    }

    /// When the oldest order was given whose answer the daemon does not have yet.
    pub(crate) fn oldest_order(&self) -> Option<Duration> {
        let connection = self.connection.as_ref()?;
        let answered = connection
            .messages
            .iter()
            .filter_map(|message| match message {
                Message::Report(_, _, given) => Some(*given),
                Message::Holds(_) | Message::Register(_) | Message::Unregister(_) => None,
            });
        let given = connection.orders.iter().map(|(_, _, given)| *given);
        answered.chain(given).min()
    }

    /// Its agent will not do any of its next order, for this reason.
    pub fn refuse(&mut self, reason: Outcome) {
        self.mood = Mood {
            willing: Some(0),
            refusal: Some(reason),
        };
    }

    /// The app asks for merging.
    pub fn register(&mut self, run: PageRun) {
        self.mergeable.extend(run.start..run.end());
        self.tell(Message::Register(run));
    }

    /// The app wants no merging any more.
    pub(crate) fn unregister(&mut self, run: PageRun, arenas: &Arenas) {
        for page in run.start..run.end() {
            if self.mergeable.remove(&page) {
                self.unmerge(page, arenas);
            }
        }
        self.tell(Message::Unregister(run));
    }

    /// `munmap`.
    pub fn unmap(&mut self, run: PageRun) {
        self.discard(run);
        for page in run.start..run.end() {
            self.mergeable.remove(&page);
        }
        self.tell(Message::Unregister(run));
    }

    /// `mremap` to a place where nothing is.
    pub(crate) fn move_pages(&mut self, run: PageRun, to: u64, arenas: &Arenas) {
        let target = PageRun {
            start: to,
            len: run.len,
        };
        let moves: Vec<_> = (run.start..run.end()).zip(to..target.end()).collect();
        let was_mergeable: Vec<bool> = moves
            .iter()
            .map(|(from, _)| self.mergeable.contains(from))
            .collect();
        self.unregister(run, arenas);
        for ((from, to), mergeable) in moves.into_iter().zip(was_mergeable) {
            if let Some(page) = self.pages.remove(&from) {
                self.pages.insert(to, page);
            }
            if let Some(content) = self.wrote.remove(&from) {
                self.wrote.insert(to, content);
            }
            if self.pinned.remove(&from) {
                self.pinned.insert(to);
            }
            if mergeable {
                self.register(PageRun { start: to, len: 1 });
            }
        }
    }
}
