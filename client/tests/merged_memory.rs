//! Memory that is merged: what daemons that come and go are told of it, and how the app gets it back.

mod daemon_double;

use daemon_double::{App, DaemonDouble, Peer, pause, say, socket};
use ksm_client::{Client, Config};
use ksm_engine::order::{MapRun, Order, Outcome, ReportRef, VisitState};
use ksm_engine::page::{ArenaId, PAGE_SIZE, PageRun};
use ksm_engine::wire::{HeldArena, NamedArena, ToAgent, ToDaemon};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::{AsFd, OwnedFd};

const PAGES: usize = 8;
const LEN: usize = PAGES * PAGE_SIZE;

fn content() -> Vec<u8> {
    let byte = |i: usize| u8::try_from(i / PAGE_SIZE + i % 7 + 1).expect("small");
    (0..LEN).map(byte).collect()
}

#[allow(unsafe_code, reason = "memory that the app maps itself")]
fn map() -> *mut u8 {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), LEN, protection, MapFlags::PRIVATE)
    };
    start.expect("memory").cast()
}

#[allow(unsafe_code, reason = "memory that the app maps itself")]
fn bytes(start: *mut u8) -> &'static mut [u8] {
    // SAFETY: `map` mapped that much; each caller lets go of the slice before the next one.
    unsafe { std::slice::from_raw_parts_mut(start, LEN) }
}

/// How many mappings lie in the memory, and whether one of them is of a file.
fn mappings(start: *mut u8) -> (usize, bool) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    let range = start.addr()..start.addr() + LEN;
    let inside = maps.lines().filter(|line| {
        let from = line.split('-').next().expect("a line");
        let from = usize::from_str_radix(from, 16).expect("an address");
        range.contains(&from)
    });
    let files: Vec<bool> = inside.map(|line| line.contains("ksm")).collect();
    (files.len(), files.contains(&true))
}

#[test]
#[ignore = "an app"]
#[allow(unsafe_code, reason = "the calls under test are unsafe")]
fn app_that_takes_its_memory_back() {
    let client = Client::start(&Config::default().socket(socket())).expect("a client");
    let start = map();
    bytes(start).copy_from_slice(&content());
    // SAFETY: the memory is ours, private and anonymous.
    unsafe { client.mergeable(start, LEN) }.expect("registered");
    say(&format!("{} {PAGES}", start.addr() / PAGE_SIZE));
    pause();
    assert!(mappings(start).1, "it is merged");
    assert_eq!(bytes(start), content());
    // SAFETY: as above.
    unsafe { client.unmergeable(start, LEN) }.expect("unmerged");
    assert!(!mappings(start).1, "no file of ours is left");
    assert_eq!(bytes(start), content());
    // SAFETY: nobody refers to the memory.
    unsafe { rustix::mm::madvise(start.cast(), LEN, Advice::LinuxDontNeed) }.expect("madvise");
    assert!(bytes(start).iter().all(|byte| *byte == 0));
    say("taken back");
    pause();
}

/// A sealed arena that begins with the app's bytes.
fn arena() -> OwnedFd {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let arena = rustix::fs::memfd_create("ksm-arena", flags).expect("memfd");
    let written = rustix::io::pwrite(&arena, &content(), 0).expect("pwrite");
    assert_eq!(written, LEN);
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&arena, seals).expect("seals");
    arena
}

fn merge(peer: &mut Peer, run: PageRun) {
    let order = Order::Map {
        arena: ArenaId(0),
        runs: vec![MapRun {
            start: run.start,
            len: u32::try_from(run.len).expect("small"),
            slot: 0,
        }],
    };
    peer.order(&order, Some(arena().as_fd()));
    loop {
        match peer.receive() {
            Some(ToDaemon::Report {
                report: ReportRef::Done { outcomes },
                ..
            }) => {
                assert!(
                    outcomes
                        .iter()
                        .all(|run| run.outcome == Outcome::Done as u32)
                );
                return;
            }
            Some(_) => {}
            None => panic!("the agent hung up"),
        }
    }
}

/// What a daemon calls an arena means nothing to the next one, nor to the same one over another connection, until it is
/// said again.
#[test]
fn a_daemon_that_comes_next_is_handed_what_is_mapped_and_names_it() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_takes_its_memory_back", &daemon.path());
    let mut peer = daemon.welcome();
    let run = app.hear_run();
    peer.await_registration(run);
    merge(&mut peer, run);
    assert_eq!(peer.state_of(run), VisitState::Merged);
    let named = |peer: &mut Peer, held: &HeldArena| {
        assert_eq!(peer.state_of(run), VisitState::Foreign);
        let (tag, arena) = (held.tag, ArenaId(99));
        let names = &[NamedArena { tag, arena }];
        peer.send(&ToAgent::Named { names }, &[]);
        assert_eq!(peer.state_of(run), VisitState::Merged);
    };
    let inode_of = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("fstat").st_ino;

    drop(peer);
    let mut peer = daemon.welcome();
    let [held] = peer.await_holds()[..] else {
        panic!("it is one arena");
    };
    assert_eq!(inode_of(&peer.descriptors[0]), held.inode);
    named(&mut peer, &held);

    // Another agent has the memory, but not the descriptors. It is given one.
    let agent = Pid::from_raw(agent_of(app.pid()).cast_signed()).expect("not 0");
    kill_process(agent, Signal::KILL).expect("the agent is there");
    let descriptor = std::mem::take(&mut peer.descriptors);
    let mut peer = daemon.welcome();
    assert_eq!(peer.await_holds(), [held]);
    assert!(peer.descriptors.is_empty());
    named(&mut peer, &held);
    drop(descriptor);
    let arena = arena();
    let own = inode_of(&arena);
    let keep = ToAgent::Keep { arena: ArenaId(99) };
    peer.send(&keep, &[arena.as_fd()]);
    assert_eq!(peer.state_of(run), VisitState::Merged);
    drop(peer);
    let mut peer = daemon.welcome();
    assert_eq!(peer.await_holds(), [held]);
    assert_eq!(inode_of(&peer.descriptors[0]), own);

    // What the daemon lets go is another daemon's to it.
    named(&mut peer, &held);
    let arenas = &[ArenaId(99)];
    peer.send(&ToAgent::LetGo { arenas }, &[]);
    assert_eq!(peer.state_of(run), VisitState::Foreign);

    app.go_on();
    assert_eq!(app.hear(), "taken back");
    // Nothing is mapped any more, and nothing is handed in.
    drop(peer);
    let mut peer = daemon.welcome();
    loop {
        match peer.receive() {
            Some(ToDaemon::AllSaid) => break,
            Some(ToDaemon::Holds { arenas }) => panic!("{arenas:?}"),
            Some(_) => {}
            None => panic!("the agent hung up"),
        }
    }
    app.finish();
}

/// The agent of an app: its child that is not seen by `wait`.
fn agent_of(app: u32) -> u32 {
    let tasks = std::fs::read_dir(format!("/proc/{app}/task")).expect("the app lives");
    let children = tasks.map(|task| {
        let path = task.expect("a thread").path().join("children");
        std::fs::read_to_string(path).expect("proc")
    });
    let all: String = children.collect();
    let mut pids = all.split_whitespace();
    let agent = pids.next().expect("an agent").parse().expect("a number");
    assert_eq!(pids.next(), None, "it has one child");
    agent
}

/// The pages are plain anonymous memory again, though nobody but the steward has the descriptors that it takes.
#[test]
fn memory_that_is_unmergeable_again_is_plain_anonymous_memory() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_takes_its_memory_back", &daemon.path());
    let mut peer = daemon.welcome();
    let run = app.hear_run();
    peer.await_registration(run);
    merge(&mut peer, run);
    app.go_on();
    assert_eq!(app.hear(), "taken back");
    peer.await_unregistration(run);
    app.finish();
}
