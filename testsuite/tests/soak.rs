//! Much coming and going, after which everything is as it was: descriptors, maps, memory of daemon and apps, arenas,
//! and what the files say.
//!
//! `SOAK_SECONDS` says for how long (eight hours: 28800), `SOAK_SEED` what is drawn.

use std::fmt;
use std::time::{Duration, Instant};
use testsuite::content::mix;
use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const PAGES: usize = 300;
/// What the lasting apps have in common when nothing goes on.
const COMMON: usize = 200;
/// What a process may have more of than it had: the first time that something happens it may take memory for good.
const KIB: u64 = 2048;
/// Pages that were unmerged stay in as many mappings as the agent had moved them in, until the app unmaps them: at most one
/// for each page.
const MAPS: usize = PAGES;
/// The same pages may lie in some more arenas than before, and an agent has a descriptor of each.
const KEPT: usize = 2;
const GAUGES: [&str; 8] = [
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
    "general_profit",
];

/// What a process has.
#[derive(Clone, Debug, Default)]
struct Has {
    descriptors: usize,
    maps: usize,
    kib: u64,
}

impl Has {
    /// Of process `pid`; descriptors those of task `task`, which may have a table of its own.
    fn of(pid: u32, task: u32) -> Self {
        let open = |pid: u32| {
            let process = procfs::process::Process::new(pid.cast_signed());
            process.expect("it lives")
        };
        let maps = open(pid).smaps().expect("own child");
        let own = maps.iter().filter(|map| !ksmfs::footprint::is_arena(map));
        let private =
            |map: &procfs::process::MemoryMap| map.extension.map.get("Anonymous").copied();
        Self {
            descriptors: open(task).fd_count().expect("own child"),
            maps: maps.iter().count(),
            kib: own.filter_map(private).sum::<u64>() / 1024,
        }
    }

    fn fits(&self, before: &Self, descriptors: usize) -> bool {
        self.descriptors <= before.descriptors + descriptors
            && self.maps <= before.maps + MAPS
            && self.kib <= before.kib + KIB
    }
}

/// How everything is when nothing goes on.
#[derive(Clone, Debug)]
struct Picture {
    daemon: Has,
    workers: Vec<Has>,
    agents: Vec<Has>,
    arena_bytes: u64,
    gauges: [i64; GAUGES.len()],
}

impl Picture {
    fn fits(&self, before: &Self) -> bool {
        let all = |now: &[Has], then: &[Has], descriptors| {
            let mut both = now.iter().zip(then);
            both.all(|(now, then)| now.fits(then, descriptors))
        };
        self.daemon.fits(&before.daemon, 0)
            && all(&self.workers, &before.workers, 0)
            && all(&self.agents, &before.agents, KEPT)
            && self.arena_bytes <= before.arena_bytes
            && self.gauges == before.gauges
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "daemon {:?}", self.daemon)?;
        writeln!(f, "apps {:?}", self.workers)?;
        writeln!(f, "agents {:?}", self.agents)?;
        let named: Vec<_> = GAUGES.iter().zip(self.gauges).collect();
        write!(f, "{} bytes of arenas, {named:?}", self.arena_bytes)
    }
}

struct Soak {
    daemon: Daemon,
    lasting: Vec<Worker>,
    brief: Vec<Worker>,
    random: u64,
    deeds: u64,
}

impl Soak {
    fn new() -> Self {
        let daemon = Daemon::start(KIT);
        let lasting = (0..2)
            .map(|_| Worker::start(KIT, &daemon.socket(), 0, PAGES))
            .collect();
        let random = std::env::var("SOAK_SEED").map_or(1, |seed| seed.parse().expect("a number"));
        Self {
            daemon,
            lasting,
            brief: Vec::new(),
            random,
            deeds: 0,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random) % below
    }

    fn part(&mut self) -> (usize, usize) {
        let start = usize::try_from(self.draw(PAGES as u64)).expect("small");
        let most = (PAGES - start) as u64;
        (start, usize::try_from(1 + self.draw(most)).expect("small"))
    }

    fn content(&mut self) -> Content {
        match self.draw(4) {
            0 => Content::Zero,
            1 => Content::Same(1 + self.draw(3)),
            _ => Content::Each(self.draw(5)),
        }
    }

    /// One thing that happens to one of the apps, or to all.
    fn happens(&mut self) {
        self.deeds += 1;
        let (start, count) = self.part();
        let content = self.content();
        let at = usize::try_from(self.draw(2)).expect("small");
        let deed = self.draw(12);
        let worker = &mut self.lasting[at];
        match deed {
            0..3 => worker.fill(start, count, content),
            3 => drop(worker.ask(&format!("discard {start} {count}"))),
            4 => {
                worker.ask(&format!("unmergeable {start} {count}"));
                worker.fill(start, count, content);
                worker.ask(&format!("mergeable {start} {count}"));
            }
            5 => drop(worker.ask("fork-verify")),
            6 => worker.verify(),
            7 | 8 => {
                let mut new = Worker::start(KIT, &self.daemon.socket(), 0, PAGES);
                new.fill(start, count, content);
                self.brief.push(new);
                if self.brief.len() > 2 {
                    self.brief.remove(0).kill();
                }
            }
            9 => {
                self.daemon.write("run", "2");
                let most = ["2", "8", "256"][usize::try_from(self.draw(3)).expect("small")];
                self.daemon.write("max_page_sharing", most);
                self.daemon.write("run", "1");
            }
            10 => {
                let zero = ["0", "1"][at];
                self.daemon.write("use_zero_pages", zero);
            }
            _ => self.daemon.wait_scans(2),
        }
    }

    /// Leaves only what was there in the beginning, and waits until the files say so.
    fn picture(&mut self) -> Picture {
        self.brief.drain(..).for_each(Worker::kill);
        self.daemon.write("run", "2");
        self.daemon.write("max_page_sharing", "256");
        self.daemon.write("use_zero_pages", "0");
        for (seed, worker) in (100..).zip(&mut self.lasting) {
            worker.ask(&format!("unmergeable 0 {PAGES}"));
            worker.ask(&format!("discard 0 {PAGES}"));
            worker.ask(&format!("mergeable 0 {PAGES}"));
            worker.fill(0, COMMON, Content::Each(99));
            worker.fill(COMMON, PAGES - COMMON, Content::Each(seed));
        }
        self.daemon.write("run", "1");
        let all = i64::try_from(COMMON).expect("small");
        let own = i64::try_from(PAGES - COMMON).expect("small");
        let daemon = &self.daemon;
        until_true("the lasting apps to merge what they have in common", || {
            daemon.number("pages_sharing") == all && daemon.number("pages_unshared") == 2 * own
        });
        self.lasting.iter_mut().for_each(Worker::verify);
        self.look()
    }

    fn look(&mut self) -> Picture {
        let daemon = self.daemon.pid();
        let of = |pid: u32| Has::of(pid, pid);
        let agents: Vec<u32> = self
            .lasting
            .iter_mut()
            .map(|worker| worker.ask("agent").parse().expect("a pid"))
            .collect();
        let pids: Vec<u32> = self.lasting.iter().map(Worker::pid).collect();
        let memory = ksmfs::footprint::of(&pids, Some(daemon)).expect("own children");
        Picture {
            daemon: of(daemon),
            workers: pids.iter().map(|pid| of(*pid)).collect(),
            agents: pids
                .iter()
                .zip(agents)
                .map(|(pid, agent)| Has::of(*pid, agent))
                .collect(),
            arena_bytes: memory.arenas,
            gauges: GAUGES.map(|gauge| self.daemon.number(gauge)),
        }
    }
}

#[test]
fn after_much_coming_and_going_everything_is_as_it_was() {
    let time = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let mut soak = Soak::new();
    soak.daemon.scan_fast();
    // What is taken once and kept is taken now.
    (0..60).for_each(|_| soak.happens());
    let before = soak.picture();
    println!("before:\n{before}");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(time) || soak.deeds < 200 {
        soak.happens();
    }
    let mut after = soak.picture();
    println!("after {} deeds:\n{after}", soak.deeds);
    // Slots and arenas are given back scan by scan.
    until_true("everything to be as it was", || {
        let fits = after.fits(&before);
        if !fits {
            after = soak.look();
            eprintln!("not yet:\n{after}");
            soak.daemon.wait_scans(1);
        }
        fits
    });
}
