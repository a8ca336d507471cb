//! Every system call of the agent fails at every place.
//!
//! The calls of a thread that plays the agent are stopped at the kernel's door (a seccomp filter with a listener), so no
//! call can be forgotten and the agent is the one that users have. For each kind of call, each place where it stands in
//! a life of pages (visited, donated, merged, broken, merged again, moved to another arena, zeroed, unmerged) and each
//! error, that life is lived once. After each order all bytes must be right, nothing may be held, and in the end the
//! same memory must merge and unmerge as if nothing had been.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod door;
#[path = "../rig/mod.rs"]
mod rig;
mod sys;

use door::{Fault, Kind, Plan};
use ksm_client::agent::REST;
use ksm_engine::order::{MapRun, OrderRef, Outcome};
use ksm_engine::page::{PAGE_SIZE, PageBytes, PageRun};
use rig::sys::Memory;
use rig::{Arena, Rig, page};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longer than a life takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
/// Pages that have their twins in the arenas, but for one.
const EQUAL: usize = 8;
const UNEQUAL: usize = 5;
const ZEROES: usize = 2;
const ALL: usize = EQUAL + ZEROES;

/// The app, and what it knows of its pages.
struct Scene {
    rig: Rig,
    memory: Memory,
    contents: Vec<PageBytes>,
    arenas: [Arena; 2],
}

impl Scene {
    fn new() -> Self {
        let rig = Rig::new();
        let mut contents: Vec<_> = (0..EQUAL).map(page).collect();
        contents[UNEQUAL] = page(1000);
        contents.resize(ALL, [0; PAGE_SIZE]);
        let memory = rig.memory(ALL, |i| contents[i]);
        Self {
            rig,
            memory,
            contents,
            arenas: [1, 2].map(|id| Arena::new(id, EQUAL, page)),
        }
    }

    /// The pages as they were at first, in new memory at the same place.
    fn begin_anew(&mut self) {
        self.rig.space.discard(self.memory.run()).unwrap();
        for (i, bytes) in self.contents.iter().enumerate() {
            self.memory.write(i, bytes);
        }
    }

    /// One order, in the course of which calls may fail.
    fn order(&mut self, order: &OrderRef<'_>, arena: Option<usize>, armed: &AtomicBool) {
        let arena = arena.map(|which| self.arenas[which].fd.as_fd());
        self.rig.handle(order, arena, armed);
        self.check();
    }

    fn check(&self) {
        assert!(!self.rig.space.is_holding(), "something is still held");
        for (i, bytes) in self.contents.iter().enumerate() {
            assert!(self.memory.read(i) == *bytes, "page {i} has other bytes");
        }
    }

    fn live(&mut self, armed: &AtomicBool) {
        let all = self.memory.run();
        let visit = OrderRef::Visit {
            range: all,
            limit: 2048,
            skip: &[],
            nodes: false,
            brief: false,
        };
        let runs = [MapRun {
            start: all.start,
            len: EQUAL.try_into().unwrap(),
            slot: 0,
        }];
        let map = OrderRef::Map {
            arena: self.arenas[0].id,
            runs: &runs,
        };
        let remap = OrderRef::Remap {
            arena: self.arenas[1].id,
            runs: &runs,
        };
        let zeroes = [self.memory.part(EQUAL as u64, ZEROES as u64)];
        let donated = [self.memory.part(0, 4)];
        self.order(&visit, None, armed);
        self.order(&visit, None, armed);
        self.order(&OrderRef::Donate { runs: &donated }, None, armed);
        self.order(&map, Some(0), armed);
        // Breaks a merged page without changing it.
        self.memory.write(2, &self.contents[2]);
        self.order(&visit, None, armed);
        self.order(&visit, None, armed);
        std::thread::sleep(REST);
        self.order(&map, Some(0), armed);
        self.order(&remap, Some(1), armed);
        self.order(&OrderRef::Zero { runs: &zeroes }, None, armed);
        self.order(&OrderRef::Count, None, armed);
        self.order(&OrderRef::Unmerge { range: all }, None, armed);
    }

    /// Everything merges and unmerges as it does where no call ever failed.
    fn recovers(&mut self) {
        let all = self.memory.run();
        let flags = waiting_flags(all);
        let waits = flags.iter().any(|flag| flag == "um");
        assert!(!waits, "left registered: {flags:?}");
        // What is only tracked keeps nobody waiting. Pages of another userfaultfd stay.
        let mut change = self.rig.space.change();
        change.end_tracking(&self.rig.userfaults, all);
        drop(change);
        let flags = waiting_flags(all);
        assert!(flags.is_empty(), "left registered: {flags:?}");
        self.begin_anew();
        let begin = Instant::now();
        let outcomes = loop {
            let all = EQUAL.try_into().unwrap();
            let outcomes = self.rig.map(&self.memory, 0, all, &self.arenas[0], 0);
            // An agent that could not count the mappings takes none until it counts again.
            if !outcomes.contains(&Outcome::NoMaps) {
                break outcomes;
            }
            assert!(begin.elapsed() < DEADLINE, "it never counts again");
            std::thread::sleep(REST);
        };
        for (i, outcome) in outcomes.into_iter().enumerate() {
            let expected = match i {
                UNEQUAL => Outcome::Changed,
                _ => Outcome::Done,
            };
            assert_eq!(outcome, expected, "page {i}");
        }
        let all = self.memory.run();
        assert_eq!(self.rig.unmerge(all), all.end());
        self.check();
    }
}

/// The flags of mappings of `run` that make somebody wait: `um` and `uw`, as `smaps` has them.
fn waiting_flags(run: PageRun) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut found = Vec::new();
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) = first
            .split_once('-')
            .map(|(start, end)| (number(start), number(end)))
        {
            let page = PAGE_SIZE as u64;
            inside = start / page < run.end() && end / page > run.start;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && inside
        {
            let waits = flags.split(' ').filter(|flag| matches!(*flag, "um" | "uw"));
            found.extend(waits.map(str::to_owned));
        }
    }
    found
}

/// Lives a life under a plan; how often each kind of call was made. Fails if the life does not end.
fn live(scene: Scene, plan: Plan) -> (Scene, BTreeMap<Kind, usize>, usize) {
    let (tell, told) = mpsc::channel();
    let what = format!("{plan:?}");
    let life = std::thread::Builder::new()
        .name(what.clone())
        .spawn(move || {
            let mut scene = scene;
            scene.begin_anew();
            let range = scene.memory.run();
            let (counts, injected) = door::watch(range, plan, |armed| scene.live(armed));
            scene.recovers();
            let _ = tell.send((scene, counts, injected));
        });
    match told.recv_timeout(DEADLINE) {
        Ok(lived) => {
            life.unwrap().join().unwrap();
            lived
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("memory is wrong after {what}"),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("somebody waits for ever after {what}"),
    }
}

/// Fails each call of a life with each of `faults`, and as often in a row as `times` says.
fn fail_everywhere(times: usize) {
    let (mut scene, counts, _) = live(Scene::new(), Plan::nothing());
    assert!(counts.len() > 8, "too few kinds of calls: {counts:?}");
    let (mut lives, mut injected, mut kinds) = (0, 0, 0);
    for (kind, count) in counts {
        let before = injected;
        // What fails several times in a row is what lacks memory or is in the way for a moment.
        let passing = [Errno::NOMEM, Errno::AGAIN].map(Fault::Error);
        let faults = kind.faults().into_iter();
        for fault in faults.filter(|fault| times == 1 || passing.contains(fault)) {
            for at in 0..count {
                let plan = Plan::new(kind, at, times, fault);
                let failed;
                (scene, _, failed) = live(scene, plan);
                lives += 1;
                injected += failed;
            }
        }
        println!("{kind:?}: {count} calls in a life");
        kinds += usize::from(injected > before);
    }
    println!("{injected} calls of {kinds} kinds failed in {lives} lives");
    // Not how many: what is looked at for signs of pins depends on the tests that run beside this one.
    assert!(kinds > 8, "calls of {kinds} kinds failed");
}

#[test]
fn each_call_fails_once_at_each_place() {
    fail_everywhere(1);
}

#[test]
fn each_call_fails_three_times_from_each_place_on() {
    fail_everywhere(3);
}

#[test]
fn the_door_lets_through_what_is_not_to_fail_and_nothing_else() {
    let plan = Plan::new(Kind::Readv, 0, 1, Fault::Error(Errno::NOMEM));
    let (_, counts, injected) = live(Scene::new(), plan);
    assert_eq!(injected, 1);
    assert!(counts[&Kind::Readv] > 1);
}
