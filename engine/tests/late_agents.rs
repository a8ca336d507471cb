//! Agents of one user that answer late, and how much that costs the agents of another: simulated time, so that the
//! verdict is the same on every machine.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod changing;

use ksm_engine::arena::MemfdStore;
use ksm_engine::engine::Engine;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Order, OrderId};
use ksm_engine::page::{DomainId, MmId, PageRun, UserId};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

const HONEST: UserId = UserId(1);
const LATE: UserId = UserId(2);
/// Pages of the honest process.
const PAGES: u64 = 256;
const HOUR: Duration = Duration::from_secs(3600);
const TIME: Duration = Duration::from_secs(10);

/// What an agent needs that does its best.
fn work(order: &Order) -> Duration {
    let pages = match order {
        Order::Visit { range, limit, .. } => range.len.min((*limit).into()),
        _ => 1,
    };
    let pages = u32::try_from(pages).unwrap();
    Duration::from_micros(100) + Duration::from_micros(3) * pages
}

struct World {
    engine: Engine<MemfdStore>,
    now: Duration,
    /// Reports under way, by the time when they come.
    under_way: BTreeMap<(Duration, OrderId), (MmId, Order)>,
    /// Until when each agent is at work.
    busy: BTreeMap<MmId, Duration>,
    visited: u64,
}

impl World {
    fn new() -> Self {
        let mut engine = Engine::new(MemfdStore::new(), [7; 32]);
        for (file, value) in [
            (KsmFile::SmartScan, "0"),
            (KsmFile::PagesToScan, "100000"),
            (KsmFile::SleepMillisecs, "1"),
            (KsmFile::Run, "1"),
        ] {
            engine.write(file, value.as_bytes()).unwrap();
        }
        Self {
            engine,
            now: Duration::ZERO,
            under_way: BTreeMap::new(),
            busy: BTreeMap::new(),
            visited: 0,
        }
    }

    fn join(&mut self, user: UserId, pages: u64) -> MmId {
        let mm = self.engine.add_mm_of(DomainId(user.0), user).unwrap();
        self.engine.register(
            mm,
            PageRun {
                start: 16,
                len: pages,
            },
        );
        mm
    }

    /// Lets an agent of the honest user and those of the late one work, whose orders take as long as `delay` says.
    fn run(&mut self, honest: MmId, mut delay: impl FnMut(Duration, &Order) -> Duration) {
        let end = self.now + TIME;
        while self.now < end {
            while let Some((mm, id, order)) = self.engine.take_order() {
                let takes = if mm == honest {
                    work(&order)
                } else {
                    delay(self.now, &order)
                };
                let free = self.busy.get(&mm).copied().unwrap_or_default();
                let done = free.max(self.now) + takes;
                self.busy.insert(mm, done);
                self.under_way.insert((done, id), (mm, order));
            }
            let next = self.under_way.keys().next().map(|(at, _)| *at);
            let wake = self.engine.wake_at();
            self.now = [next, wake]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end)
                .max(self.now);
            self.engine.note_time(self.now);
            while let Some(((at, id), (mm, order))) = self.under_way.pop_first() {
                if at > self.now {
                    self.under_way.insert((at, id), (mm, order));
                    break;
                }
                if mm == honest
                    && let Order::Visit { range, limit, .. } = &order
                {
                    self.visited += range.len.min((*limit).into());
                }
                changing::answer(&mut self.engine, mm, id, &order);
            }
            self.engine.advance(self.now);
        }
    }
}

/// Pages of the honest process that are visited beside so many processes of the other user, of so many pages.
fn pace(others: u64, pages: u64, delay: impl FnMut(Duration, &Order) -> Duration) -> u64 {
    let mut world = World::new();
    let honest = world.join(HONEST, PAGES);
    for _ in 0..others {
        world.join(LATE, pages);
    }
    world.run(honest, delay);
    let waited: BTreeMap<_, _> = world.engine.waited_for().collect();
    eprintln!("{} pages, waited for: {waited:?}", world.visited);
    world.visited
}

/// What the honest process has left of its pace beside the same processes that do their best, in hundredths.
fn share(others: u64, pages: u64, delay: impl FnMut(Duration, &Order) -> Duration) -> u64 {
    static UNDISTURBED: Mutex<BTreeMap<(u64, u64), u64>> = Mutex::new(BTreeMap::new());
    let attacked = pace(others, pages, delay);
    let mut undisturbed = UNDISTURBED.lock().unwrap();
    let undisturbed = undisturbed.entry((others, pages));
    attacked * 100 / *undisturbed.or_insert_with(|| pace(others, pages, |_, order| work(order)))
}

#[test]
fn who_answers_late_or_never_costs_less_than_a_tenth() {
    for millis in [2, 10, 130, 501, 4999] {
        let late = Duration::from_millis(millis);
        let share = share(1, 4, |_, _| late);
        assert!(share > 90, "{share} % of the pace beside {late:?}");
    }
    let share = share(1, 4, |_, _| HOUR);
    assert!(share > 90, "{share} % beside one that never answers");
}

#[test]
fn many_late_processes_of_one_user_cost_no_more() {
    let share = share(30, 4, |_, _| Duration::from_millis(4900));
    assert!(share > 90, "{share} % of the pace");
}

#[test]
fn who_saves_up_before_being_late_costs_no_more() {
    let mut orders = 0u64;
    let share = share(1, 512, |_, order| {
        orders += 1;
        if orders.is_multiple_of(500) {
            Duration::from_millis(4900)
        } else {
            work(order)
        }
    });
    assert!(share > 90, "{share} %");
}

#[test]
fn who_comes_again_owes_what_it_owed() {
    let mut world = World::new();
    let honest = world.join(HONEST, PAGES);
    let mut visited = 0;
    for _ in 0..2 {
        let late = world.join(LATE, 4);
        world.run(honest, |_, _| HOUR);
        world.engine.remove_mm(late);
        world.under_way.retain(|_, (mm, _)| *mm != late);
        visited = world.visited;
    }
    let undisturbed = 2 * pace(0, 0, |_, _| unreachable!());
    assert!(
        visited * 100 / undisturbed > 90,
        "{visited} of {undisturbed}"
    );
}

/// On a machine that is slow for all, nobody is late.
#[test]
fn a_slow_machine_is_nobodys_fault() {
    let mut world = World::new();
    world.join(HONEST, PAGES);
    world.join(LATE, PAGES);
    let mut asked = 0;
    let slow = |order: &Order| 12 * work(order);
    world.run(MmId(u32::MAX), |_, order| {
        asked += 1;
        slow(order)
    });
    let waited: BTreeMap<_, _> = world.engine.waited_for().collect();
    let all = world.engine.counters().pages_scanned;
    let scans = world.engine.counters().full_scans;
    // Had one been set aside, scans would have passed it by.
    // The first scan began before the second process had joined.
    assert!(
        all >= (scans - 1) * 2 * PAGES,
        "{all} pages in {scans} scans, {waited:?}"
    );
    assert!(scans > 100 && asked > 400, "{scans}");
}

/// With nobody else there, an agent has all the time that an order has.
#[test]
fn alone_nobody_is_late() {
    let mut world = World::new();
    world.join(HONEST, 4);
    world.run(MmId(u32::MAX), |_, _| Duration::from_millis(4900));
    let scanned = world.engine.counters().pages_scanned;
    let scans = world.engine.counters().full_scans;
    assert!(
        scans >= 1 && scanned / 4 - scans <= 1,
        "{scanned} in {scans}"
    );
}
