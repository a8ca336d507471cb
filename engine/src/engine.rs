//! The engine: everything that is decided, and nothing that is done.
//!
//! Events go in (an mm appears, a region is registered, a report arrives, a knob is written, time passes); orders
//! come out of [`Engine::take_order`]. One scan of all mms is cut into batches of `pages_to_scan` pages; a batch asks
//! agents to visit pages, decides page by page in cursor order, has pages donated and mapped, and ends when every
//! order it led to is answered. That is what makes the counters after each batch the kernel's.
//!
//! The parts: [`mm`] address spaces and cursor, [`items`] rmap items, [`stable`] and [`unstable`] the trees,
//! [`arenas`] slots, [`scan`] batches, [`visits`] what they look at, [`visit`] the merge routine, [`merge`] donations and mappings, [`retire`] moving
//! out of sparse arenas, [`refile`] to fuller dups, [`huge`] parts of huge pages, [`control`] knobs, [`advisor`], [`outbox`] orders,
//! [`patience`] who is waited for, [`quota`] how much one may have, [`closing`] domains that nobody joins any more.

mod advisor;
mod arenas;
mod audit;
mod closing;
mod control;
mod count;
mod donate;
mod huge;
mod inquiry;
mod items;
mod merge;
mod mm;
mod outbox;
mod patience;
mod quota;
mod refile;
mod retire;
mod scan;
mod slab;
mod stable;
mod unstable;
mod visit;
mod visits;

use crate::digest::Salt;
use crate::knobs::{KsmFile, WriteError};
use crate::order::{Donation, Order, OrderId, Outcome, ReportRef};
use crate::page::{
    ARENA_SLOT_LIMIT, ArenaId, Digest, DomainId, MmId, NumaNode, PAGE_SIZE, PageBytes, PageRun,
    UserId,
};
use crate::store::SlotStore;
use crate::wire::Figures;
use arenas::{Arenas, Kind};
use hashbrown::HashMap;
use items::ItemRef;
use mm::{Mm, MmTable, ScanList};
use outbox::{Outbox, Purpose};
use scan::{Ksmd, ScanStart};
use stable::{NodeId, StableTrees};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use unstable::UnstableTrees;

pub use control::{Extras, Knobs, Ticket, Written};
pub use quota::Quotas;

/// Bytes that the kernel spends on an rmap item: what the profit figures count.
pub const RMAP_ITEM_SIZE: i64 = 64;

/// The most arenas of a domain beyond which none of an earlier daemon is taken over.
pub const MAX_ARENAS: usize = 4096;

/// The most address spaces at one time.
pub const MAX_MMS: u32 = (1 << 19) - 2;

/// The counters of the directory, and some more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Stable nodes with at least one item.
    pub pages_shared: u64,
    /// Items attached to stable nodes, less `pages_shared`.
    pub pages_sharing: u64,
    /// Items in the unstable tree.
    pub pages_unshared: u64,
    /// Items that are none of these.
    pub pages_volatile: u64,
    /// Zero pages in place.
    pub zero_pages: u64,
    /// Pages visited, ever.
    pub pages_scanned: u64,
    /// Visits skipped by smart scan, ever.
    pub pages_skipped: u64,
    /// Scans of everything since the start or since the last unmerge.
    pub full_scans: u64,
    /// Chain heads.
    pub stable_node_chains: u64,
    /// Stable nodes below chain heads.
    pub stable_node_dups: u64,
    /// Items of all mms.
    pub rmap_items: u64,
    /// `(sharing + zero) * 4096 - rmap_items * 64`.
    pub general_profit: i64,
    /// Slots in use.
    pub slots_used: u64,
    /// Slots written and not in use any more, whose arena is still held.
    pub slots_dead: u64,
    /// Pages that were moved to a fuller dup, ever.
    pub pages_refiled: u64,
}

/// What cannot be right in a report. The peer that sent it is to be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The order was never given, or not to this peer.
    #[error("report on an order that was not given")]
    UnknownOrder,
    /// The report is of another kind than the order.
    #[error("report does not fit its order")]
    WrongKind,
    /// The report names pages that the order did not, or not all of them.
    #[error("report does not cover the pages of its order")]
    WrongPages,
}

/// Sums that are kept up to date as items change.
#[derive(Debug, Default)]
struct Tally {
    shared: u64,
    attached: u64,
    unshared: u64,
    scanned: u64,
    skipped: u64,
    full_scans: u64,
}

/// What belongs to one merge domain and never meets another.
#[derive(Debug)]
struct Domain {
    salt: Salt,
    zero_digest: Digest,
    stable: StableTrees,
    unstable: UnstableTrees,
    arenas: Arenas,
    /// Merged pages in the making.
    foundings: HashMap<NodeId, merge::Founding>,
    /// No process joins it any more.
    closed: bool,
}

impl Domain {
    /// Removes a stable node without items.
    fn remove_node(&mut self, node: NodeId) {
        if let Some(slot) = self.stable.remove(node).slot {
            self.arenas.give_back(slot);
        }
    }
}

/// The deciding core. See the module text.
#[derive(Debug)]
pub struct Engine<S> {
    store: S,
    secret: [u8; 32],
    now: Duration,
    knobs: Knobs,
    extras: Extras,
    refiling: refile::Refiling,
    tally: Tally,
    mms: MmTable,
    list: ScanList,
    domains: BTreeMap<DomainId, Domain>,
    next_arena: u32,
    ksmd: Ksmd,
    /// No batch is to begin.
    held: bool,
    steps: VecDeque<visits::Step>,
    plans: BTreeMap<MmId, merge::Plan>,
    /// What was donated and not looked at yet.
    donated: VecDeque<donate::Donated>,
    /// Room for the bytes of donated pages.
    spare: Vec<Vec<PageBytes>>,
    outbox: Outbox,
    patience: patience::Patience,
    quotas: Quotas,
    tracked: quota::Tracked,
    filled: quota::Filled,
    requests: VecDeque<control::Request>,
    next_ticket: u64,
    finished: VecDeque<(Ticket, Result<(), WriteError>)>,
    scan_start: ScanStart,
    advisor: advisor::Advisor,
    cpu_time: Duration,
    outcomes: BTreeMap<Outcome, u64>,
    /// Families that there have been.
    families: u64,
    /// Reports that each count of zero pages still waits for.
    counts: HashMap<Ticket, usize>,
    /// Those who wait for a full scan.
    waiting_for_scan: Vec<inquiry::Waiting>,
    /// Nodes that were moved out of an arena, and which one.
    left_behind: HashMap<(DomainId, NodeId), ArenaId>,
}

impl<S: SlotStore> Engine<S> {
    /// An engine with the kernel's defaults. The salts of all domains derive from `secret`.
    pub fn new(store: S, secret: [u8; 32]) -> Self {
        Self {
            store,
            secret,
            now: Duration::ZERO,
            knobs: Knobs::default(),
            extras: Extras::default(),
            refiling: refile::Refiling::default(),
            tally: Tally::default(),
            mms: MmTable::default(),
            list: ScanList::default(),
            domains: BTreeMap::new(),
            next_arena: 0,
            ksmd: Ksmd::Idle,
            held: false,
            steps: VecDeque::new(),
            plans: BTreeMap::new(),
            donated: VecDeque::new(),
            spare: Vec::new(),
            outbox: Outbox::default(),
            patience: patience::Patience::default(),
            quotas: Quotas::default(),
            tracked: quota::Tracked::default(),
            filled: quota::Filled::default(),
            requests: VecDeque::new(),
            next_ticket: 0,
            finished: VecDeque::new(),
            scan_start: ScanStart::default(),
            advisor: advisor::Advisor::default(),
            cpu_time: Duration::ZERO,
            outcomes: BTreeMap::new(),
            families: 0,
            counts: HashMap::new(),
            waiting_for_scan: Vec::new(),
            left_behind: HashMap::new(),
        }
    }

    /// The salt that agents of `domain` mix into digests.
    #[must_use]
    pub fn salt(&self, domain: DomainId) -> Salt {
        Salt::of_domain(&self.secret, domain)
    }

    /// Where the bytes of merged pages are.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The same, to change it.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The knobs.
    #[must_use]
    pub fn knobs(&self) -> &Knobs {
        &self.knobs
    }

    /// A new address space without regions, of the user that has the domain's number. `None` if there are [`MAX_MMS`]
    /// already.
    pub fn add_mm(&mut self, domain: DomainId) -> Option<MmId> {
        self.add_mm_of(domain, UserId(domain.0))
    }

    /// A new address space of `user` without regions. `None` if there are [`MAX_MMS`] already.
    pub fn add_mm_of(&mut self, domain: DomainId, user: UserId) -> Option<MmId> {
        if self.mms.iter().count() >= MAX_MMS as usize {
            return None;
        }
        self.enter_domain(domain).closed = false;
        self.families += 1;
        self.patience.joins(user);
        Some(self.mms.add(Mm::new(domain, user, self.families)))
    }

    fn enter_domain(&mut self, id: DomainId) -> &mut Domain {
        let salt = self.salt(id);
        self.domains.entry(id).or_insert_with(|| Domain {
            salt,
            zero_digest: salt.digest(&[0; PAGE_SIZE]),
            stable: StableTrees::default(),
            unstable: UnstableTrees::default(),
            arenas: Arenas::default(),
            foundings: HashMap::new(),
            closed: false,
        })
    }

    /// Takes over an arena of `slots` slots that an earlier daemon filled for pages of `domain`, with its memory on `numa`
    /// if that was asked for. `keep` gives it to the store. What is in a slot is looked at when a process is found to be
    /// mapped to it; if none is in the next full scans, it is let go. `None` if the domain has [`MAX_ARENAS`].
    pub fn adopt_arena(
        &mut self,
        domain: DomainId,
        numa: Option<NumaNode>,
        slots: u32,
        keep: impl FnOnce(&mut S, ArenaId),
    ) -> Option<ArenaId> {
        if self.enter_domain(domain).arenas.len() >= MAX_ARENAS {
            return None;
        }
        let (id, now) = (ArenaId(self.next_arena), self.now);
        self.next_arena += 1;
        keep(&mut self.store, id);
        let arenas = &mut self.enter_domain(domain).arenas;
        let user = UserId(domain.0);
        let slots = slots.min(ARENA_SLOT_LIMIT);
        arenas.add_adopted(id, slots, Kind { user, numa }, now);
        self.filled.add(user, slots.into());
        Some(id)
    }

    /// An agent of the domain says that its process is mapped to an arena: it is not let go before that has been looked at.
    pub fn expect_sharers(&mut self, domain: DomainId, arena: ArenaId) {
        let now = self.now;
        if let Some(domain) = self.domains.get_mut(&domain) {
            domain.arenas.expect(arena, now);
        }
    }

    /// The new address space of a process that was forked from the one of `parent`, which is in the same domain and of the
    /// same user.
    pub fn add_child(&mut self, domain: DomainId, parent: MmId) -> Option<MmId> {
        let user = self.mms.get(parent).map_or(UserId(domain.0), |mm| mm.user);
        let child = self.add_mm_of(domain, user)?;
        if let Some(family) = self.mms.get(parent).map(|mm| mm.family)
            && let Some(mm) = self.mms.get_mut(child)
        {
            mm.family = family;
        }
        Some(child)
    }

    /// The agent of `mm` speaks a version of the protocol in which nothing is summed up: it reports on each page.
    pub fn ask_at_length(&mut self, mm: MmId) {
        if let Some(mm) = self.mms.get_mut(mm) {
            mm.sums_up = false;
        }
    }

    /// The agent of `mm` is gone. Its items are freed when the next scan comes by, as with an exiting process.
    pub fn remove_mm(&mut self, id: MmId) {
        let Some(mm) = self.mms.get_mut(id).filter(|mm| !mm.exiting) else {
            return;
        };
        mm.exiting = true;
        mm.zero_pages = 0;
        self.patience.leaves(mm.user);
        let unused = mm.items.len() == 0;
        self.bereave_nodes(id);
        self.lose_orders(id);
        self.fail_visits(id);
        if !self.list.contains(id) || (unused && self.list.current() != Some(id)) {
            self.list.remove(id);
            self.drop_mm(id);
        } else {
            self.list.reach_next(id);
        }
        self.pump();
    }

    /// The pages of a process that ends have one sharer less each.
    fn bereave_nodes(&mut self, id: MmId) {
        let Some(mm) = self.mms.get(id) else { return };
        let Some(domain) = self.domains.get_mut(&mm.domain) else {
            return;
        };
        for (_, item) in mm.items.within(PageRun::EVERYTHING) {
            if item.state == items::State::Stable {
                domain.stable.bereave(NodeId(item.link));
            }
        }
    }

    /// Makes pages mergeable.
    pub fn register(&mut self, id: MmId, run: PageRun) {
        let Some(mm) = self.mms.get_mut(id) else {
            return;
        };
        mm.add_region(run);
        if !self.list.contains(id) {
            self.enlist(id);
        }
        self.pump();
    }

    /// Pages are not mergeable any more; the agent has unmerged them or they are gone. The counters follow when the
    /// next scan passes.
    pub fn unregister(&mut self, id: MmId, run: PageRun) {
        if let Some(mm) = self.mms.get_mut(id) {
            mm.remove_region(run);
            if mm.regions.is_empty() {
                // No visit will come by to say so.
                mm.zero_pages = 0;
            }
        }
    }

    /// Takes the report of `mm` on an order.
    ///
    /// # Errors
    /// When the report breaks the rules; nothing of it is believed then.
    pub fn report(
        &mut self,
        mm: MmId,
        id: OrderId,
        report: &ReportRef<'_>,
        donation: &dyn Donation,
    ) -> Result<(), ReportError> {
        if let Some(mm) = self.mms.get_mut(mm) {
            mm.silent_since = None;
        }
        let Some(sent) = self.outbox.answered(id, mm) else {
            // Late: its time was up, and it has been counted as lost.
            return if self.outbox.was_sent(id) {
                Ok(())
            } else {
                Err(ReportError::UnknownOrder)
            };
        };
        self.note_answer(mm, &sent.purpose);
        match (&sent.purpose, report) {
            (
                Purpose::Visit(_),
                ReportRef::Visited {
                    end,
                    zero_pages,
                    runs,
                    digests,
                },
            ) => {
                let report = visits::Visited {
                    end: *end,
                    zero_pages: *zero_pages,
                    runs: runs.to_vec(),
                    digests: digests.to_vec(),
                };
                self.visit_arrived(id, report)?;
            }
            (Purpose::Visit(_), ReportRef::Done { .. }) => self.visit_failed(id),
            (Purpose::Donate(nodes), ReportRef::Done { outcomes }) => {
                self.donation_arrived(mm, nodes, outcomes, donation)?;
            }
            (Purpose::Map(runs), ReportRef::Done { outcomes }) => {
                self.for_outcomes(mm, runs, outcomes, Self::mapped)?;
                self.note_unmappable(mm, runs, outcomes);
            }
            (Purpose::Zero(runs), ReportRef::Done { outcomes }) => {
                self.for_outcomes(mm, runs, outcomes, Self::zeroed)?;
            }
            (Purpose::Split(runs), ReportRef::Done { outcomes }) => {
                self.for_outcomes(mm, runs, outcomes, Self::was_split)?;
            }
            (Purpose::Remap(runs), ReportRef::Done { outcomes }) => {
                self.for_outcomes(mm, runs, outcomes, Self::remapped)?;
            }
            (Purpose::Refile(runs), ReportRef::Done { outcomes }) => {
                self.for_outcomes(mm, runs, outcomes, Self::refiled)?;
            }
            (Purpose::Unmerge { range, rest }, ReportRef::Unmerged { end }) => {
                self.unmerged(mm, *range, rest.clone(), *end)?;
            }
            (Purpose::Forget, ReportRef::Unmerged { .. }) => {}
            (Purpose::Count(ticket), ReportRef::Counted { zero_pages }) => {
                self.counted(mm, *zero_pages);
                self.count_answered(*ticket);
            }
            _ => {
                // The order is still open, and lost when the peer is cut off.
                self.outbox.reopen(id, sent);
                return Err(ReportError::WrongKind);
            }
        }
        self.pump();
        Ok(())
    }

    /// What time it is, `now` since any fixed moment, never falling: to be called before reports that have come are taken,
    /// for it says until when they were waited for.
    pub fn note_time(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        self.patience.passes(passed);
        self.charge_for_orders(passed);
    }

    /// Time passes: `now` since any fixed moment, never falling.
    pub fn advance(&mut self, now: Duration) {
        self.note_time(now);
        self.set_aside_the_late();
        for mm in self.outbox.overdue(self.now) {
            log::warn!("an agent does not answer: its pages are passed over until it does");
            if let Some(mm) = self.mms.get_mut(mm) {
                mm.silent_since = Some(self.now);
            }
            self.lose_orders(mm);
        }
        self.pump();
    }

    /// CPU time spent on merging so far, for the advisor.
    pub fn set_cpu_time(&mut self, cpu: Duration) {
        self.cpu_time = cpu;
    }

    /// When [`Engine::advance`] is to be called at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let batch = self.ksmd.wake_at().filter(|_| !self.held);
        let due = self.outbox.next_due();
        [batch, due, self.patience_ends()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time that was spent waiting for the agents of each user, ever: in a batch, while nothing else could be done.
    pub fn waited_for(&self) -> impl Iterator<Item = (UserId, Duration)> {
        self.patience.waited()
    }

    /// The next order to send; to be asked for until there is none. What was donated is looked at only when all that was ready has
    /// been taken, so that agents are at work meanwhile.
    pub fn take_order(&mut self) -> Option<(MmId, OrderId, Order)> {
        loop {
            let order = self.outbox.take();
            if order.is_some() || !self.take_donation() {
                return order;
            }
            self.pump();
        }
    }

    /// The figures of one mm.
    #[must_use]
    pub fn figures(&self, mm: MmId) -> Figures {
        let Some(mm) = self.mms.get(mm) else {
            return Figures::default();
        };
        let rmap_items = mm.items.len();
        Figures {
            rmap_items,
            zero_pages: mm.zero_pages,
            merging_pages: mm.merging,
            profit: profit(mm.merging + mm.zero_pages, rmap_items),
        }
    }

    /// All counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let tally = &self.tally;
        let rmap_items: u64 = self.mms.iter().map(|(_, mm)| mm.items.len()).sum();
        let zero_pages = self
            .mms
            .iter()
            .fold(0u64, |sum, (_, mm)| sum.saturating_add(mm.zero_pages));
        let pages_sharing = tally.attached - tally.shared;
        let listed = tally.attached + tally.unshared;
        let stable = || self.domains.values().map(|domain| &domain.stable);
        let arenas = || self.domains.values().map(|domain| &domain.arenas);
        Counters {
            pages_shared: tally.shared,
            pages_sharing,
            pages_unshared: tally.unshared,
            pages_volatile: rmap_items.saturating_sub(listed),
            zero_pages,
            pages_scanned: tally.scanned,
            pages_skipped: tally.skipped,
            full_scans: tally.full_scans,
            stable_node_chains: stable().map(StableTrees::chain_count).sum(),
            stable_node_dups: stable().map(StableTrees::dup_count).sum(),
            rmap_items,
            general_profit: profit(pages_sharing.saturating_add(zero_pages), rmap_items),
            slots_used: arenas().map(Arenas::used).sum(),
            slots_dead: arenas().map(Arenas::dead).sum(),
            pages_refiled: self.refiling.moved(),
        }
    }

    /// Scans of everything since the start or since the last unmerge.
    #[must_use]
    pub fn full_scans(&self) -> u64 {
        self.tally.full_scans
    }

    /// Roots, dups and list links that the stable trees have gone through, ever: what their work costs, in steps.
    #[must_use]
    pub fn search_steps(&self) -> u64 {
        self.domains
            .values()
            .map(|domain| domain.stable.steps())
            .sum()
    }

    /// How often each outcome of a merge was reported: why pages did not merge.
    #[must_use]
    pub fn outcomes(&self) -> &BTreeMap<Outcome, u64> {
        &self.outcomes
    }

    /// The text of a file, with its newline.
    #[must_use]
    pub fn read(&self, file: KsmFile) -> String {
        control::text(file, &self.knobs, &self.counters())
    }

    /// Notes an outcome that is not `Done`, and says once per mm and cause what it means.
    fn note(&mut self, mm: MmId, outcome: Outcome) {
        if let Some(mm) = self.mms.get_mut(mm)
            && let Some(reason) = mm.reasons.get_mut(outcome as usize)
        {
            *reason += 1;
        }
        let count = self.outcomes.entry(outcome).or_default();
        *count += 1;
        if matches!(outcome, Outcome::NoMaps | Outcome::NoMemory) && count.is_power_of_two() {
            let cause = if outcome == Outcome::NoMaps {
                "vm.max_map_count"
            } else {
                "memory"
            };
            log::warn!(
                "mm {}: merging is held back by {cause} ({count} pages so far)",
                mm.0
            );
        }
    }

    fn domain_of(&mut self, mm: MmId) -> &mut Domain {
        let domain = self
            .mms
            .get(mm)
            .expect("mms in use are in the table")
            .domain;
        self.domains
            .get_mut(&domain)
            .expect("a domain lives as long as its processes")
    }

    /// Drops an mm that is in no list any more, with its items.
    fn drop_mm(&mut self, id: MmId) {
        self.forget_all(id);
        self.plans.remove(&id);
        let domain = self.mms.get(id).map(|mm| mm.domain);
        self.mms.remove(id);
        if let Some(domain) = domain {
            self.drop_closed_domain(domain);
        }
    }

    /// Lets go of arenas that hold nothing.
    fn release_arenas(&mut self) {
        for domain in self.domains.values_mut() {
            for (id, arena) in domain.arenas.take_empty(self.now) {
                self.store.release(id);
                self.filled.give_back(&arena);
                self.left_behind.retain(|_, from| *from != id);
            }
        }
    }

    /// A new open arena for such pages of `domain`. `None`, and a logged reason, if the system has no room for one.
    fn open_arena(&mut self, domain: DomainId, kind: Kind) -> Option<ArenaId> {
        let id = ArenaId(self.next_arena);
        if let Err(error) = self.store.create(id, domain, kind.numa) {
            log::warn!("merging is held back: {error}");
            return None;
        }
        self.next_arena += 1;
        let slots = self.store.slots_per_arena();
        self.domains.get_mut(&domain)?.arenas.add(id, slots, kind);
        Some(id)
    }

    fn item(&self, item: ItemRef) -> items::RmapItem {
        self.mms
            .get(item.mm())
            .map_or_else(Default::default, |mm| mm.items.get(item.page()))
    }
}

fn profit(saved_pages: u64, rmap_items: u64) -> i64 {
    let bytes = |n: u64, size: i64| i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(size);
    let page_size = i64::try_from(PAGE_SIZE).expect("a page is small");
    bytes(saved_pages, page_size) - bytes(rmap_items, RMAP_ITEM_SIZE)
}
