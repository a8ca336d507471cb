//! A daemon, an honest pair of another user, and somebody who attacks while they merge.

use crate::agent::Agent;
use ksm_engine::wire::{Birth, Hello, Label, ToDaemon, Versions};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const NOBODY: u32 = 65534;
pub const PAGES: usize = 128;
const ROUNDS: u64 = 3;

/// What an attacker works with.
pub struct Field {
    pub socket: PathBuf,
    pub daemon: u32,
    pub victims: [u32; 2],
    over: AtomicBool,
    deeds: AtomicU64,
    arenas: Mutex<Vec<u64>>,
}

impl Field {
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Something that only an attacker does has been done.
    pub fn deed(&self) {
        self.deeds.fetch_add(1, Ordering::Relaxed);
    }

    fn deeds(&self) -> u64 {
        self.deeds.load(Ordering::Relaxed)
    }

    /// Notes what the attacker was handed to map.
    pub fn given(&self, arena: &impl AsFd) {
        let inode = rustix::fs::fstat(arena).unwrap().st_ino;
        let mut arenas = self.arenas.lock().unwrap();
        if !arenas.contains(&inode) {
            arenas.push(inode);
        }
    }

    /// A connection that has been welcomed; `None` while the daemon takes no more of them.
    pub fn join(&self) -> Option<Agent> {
        let mut agent = Agent::connect(&self.socket);
        let hello = Hello {
            pid: std::process::id(),
            parent: 0,
            birth: Birth::default(),
            versions: Versions::SPOKEN,
            label: Label::default(),
        };
        let greeted = agent.offer(&ToDaemon::Hello(hello));
        (greeted && matches!(agent.hear(), crate::agent::Heard::Welcome)).then_some(agent)
    }
}

/// Ends the attack also when the test fails.
struct Over<'a>(&'a Field);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Lets `attack` be repeated while the honest pair merges, and checks that it has cost them nothing.
pub fn withstand(attack: impl Fn(&Field) + Sync) {
    let daemon = Daemon::start(KIT);
    let mut honest = [0, 1].map(|_| Worker::start(KIT, &daemon.socket(), NOBODY, PAGES));
    daemon.scan_fast();
    let field = Field {
        socket: daemon.socket(),
        daemon: daemon.pid(),
        victims: honest.each_ref().map(Worker::pid),
        over: AtomicBool::new(false),
        deeds: AtomicU64::new(0),
        arenas: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let over = Over(&field);
        let attacker = scope.spawn(|| {
            while !field.is_over() {
                attack(&field);
            }
        });
        let ended = || attacker.is_finished();
        for round in 1..=ROUNDS {
            let before = field.deeds();
            until_true("the attack", || ended() || field.deeds() > before);
            for worker in &mut honest {
                worker.ask(&format!("discard 0 {PAGES}"));
                worker.fill(0, PAGES, Content::Each(round));
            }
            until_true("the honest pair to merge", || {
                honest.iter_mut().all(|worker| worker.merged() == PAGES)
            });
            honest.iter_mut().for_each(Worker::verify);
            assert!(!ended(), "the attacker gave up");
        }
        let theirs = field.arenas.lock().unwrap().clone();
        for pid in field.victims {
            let shared = arena_inodes(pid).into_iter().find(|i| theirs.contains(i));
            assert_eq!(shared, None, "an arena of the honest pair was handed out");
        }
        drop(over);
        attacker.join().unwrap();
    });
    // It still serves everybody.
    daemon.wait_scans(1);
    honest.iter_mut().for_each(Worker::verify);
}

fn arena_inodes(pid: u32) -> Vec<u64> {
    let process = procfs::process::Process::new(pid.cast_signed()).unwrap();
    let maps = process.maps().unwrap();
    let arenas = maps.iter().filter(|map| ksmfs::footprint::is_arena(map));
    let inodes: Vec<_> = arenas.map(|map| map.inode).collect();
    assert!(!inodes.is_empty(), "nothing is merged");
    inodes
}
