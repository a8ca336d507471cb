//! What the daemon does with those who connect: the honest, the lying, the silent and the many.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stage;

use ksm_engine::digest::Salt;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Order, OrderId, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState};
use ksm_engine::page::{ArenaId, PAGE_SIZE, PageRun, Slot};
use ksm_engine::wire::{
    BUFFER_PAGES, Birth, Hello, Label, MAX_MESSAGE, RefusalReason, ToDaemon, Versions,
};
use ksmfs::quotas::Quotas;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, Uid};
use rustix::io::Errno;
use stage::agent::{Agent, Heard};
use stage::{Daemon, Mounted, Scratch, wait_for, write_and_wait};
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const NO_SLOT: Slot = Slot {
    arena: ArenaId(0),
    index: 0,
};

/// A daemon that scans as fast as it can.
fn eager() -> Mounted {
    Mounted::with(|options| {
        options
            .knob(KsmFile::SleepMillisecs, "0")
            .knob(KsmFile::PagesToScan, "1000")
            .knob(KsmFile::Run, "1")
    })
}

fn visit_run(start: u64, len: u32, state: VisitState) -> VisitRun {
    VisitRun {
        start,
        len,
        state: state as u32,
        slot: NO_SLOT,
    }
}

/// Answers a visit: everything in its range is in `state`, or nothing is there.
fn answer_visit(agent: &mut Agent, id: OrderId, order: &Order, state: Option<VisitState>) {
    let Order::Visit { range, .. } = order else {
        panic!("{order:?} instead of a visit");
    };
    let runs: Vec<_> = state
        .map(|state| visit_run(range.start, u32::try_from(range.len).unwrap(), state))
        .into_iter()
        .collect();
    agent.report(
        id,
        ReportRef::Visited {
            end: range.end(),
            zero_pages: 0,
            runs: &runs,
            digests: &[],
        },
    );
}

#[test]
fn a_greeting_is_answered_with_a_sealed_buffer_and_the_userfaultfd_device() {
    let mounted = Mounted::new();
    let agent = Agent::join(&mounted.scratch.socket());
    assert_eq!(agent.descriptors.len(), 2);
    let buffer = &agent.descriptors[0];
    let size = rustix::fs::fstat(buffer).unwrap().st_size;
    assert_eq!(size, i64::try_from(BUFFER_PAGES * PAGE_SIZE).unwrap());
    assert_eq!(rustix::fs::ftruncate(buffer, 0), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(buffer, b"x", 0), Ok(1));
    let device = rustix::fs::fstat(&agent.descriptors[1]).unwrap();
    assert_eq!(
        device.st_rdev,
        rustix::fs::stat("/dev/userfaultfd").unwrap().st_rdev
    );
}

#[test]
fn a_peer_that_speaks_for_another_process_is_refused() {
    let mounted = Mounted::new();
    let mut agent = Agent::connect(&mounted.scratch.socket());
    agent.say(&ToDaemon::Hello(Hello {
        pid: 1_999_999_999,
        parent: 0,
        birth: Birth::default(),
        versions: Versions::SPOKEN,
        label: Label::default(),
    }));
    assert!(matches!(
        agent.hear(),
        Heard::Refused(RefusalReason::WrongPid)
    ));
    assert!(matches!(agent.hear(), Heard::HungUp));
}

#[test]
fn more_processes_than_allowed_are_refused_and_room_is_given_back() {
    let mounted = Mounted::with(|options| ksmfs::Options {
        quotas: Quotas {
            peers: 2,
            ..Quotas::default()
        },
        ..options
    });
    let socket = mounted.scratch.socket();
    let first = Agent::join(&socket);
    let _second = Agent::join(&socket);
    let greet = |agent: &mut Agent| {
        agent.say(&ToDaemon::Hello(Hello {
            pid: std::process::id(),
            parent: 0,
            birth: Birth::default(),
            versions: Versions::SPOKEN,
            label: Label::default(),
        }));
        agent.hear()
    };
    let mut third = Agent::connect(&socket);
    assert!(matches!(
        greet(&mut third),
        Heard::Refused(RefusalReason::TooMany)
    ));
    drop((first, third));
    wait_for("room for another", || {
        let mut next = Agent::connect(&socket);
        matches!(greet(&mut next), Heard::Welcome)
    });
}

/// The quota is the user's, not the process's.
#[test]
fn more_regions_than_a_user_may_have_are_refused_with_a_reason() {
    let mounted = Mounted::with(|options| ksmfs::Options {
        quotas: Quotas {
            regions: 10,
            ..Quotas::default()
        },
        ..options
    });
    let socket = mounted.scratch.socket();
    let mut first = Agent::join(&socket);
    (0..6).for_each(|at| first.register(16 + at * 2, 1));
    let mut second = Agent::join(&socket);
    (0..5).for_each(|at| second.register(16 + at * 2, 1));
    assert!(matches!(
        second.hear(),
        Heard::Refused(RefusalReason::Regions)
    ));
    assert!(matches!(second.hear(), Heard::HungUp));
    // Regions that join count as one, and those of who has gone do not count. A write is served after peers were heard.
    let hear_all =
        || fs::write(mounted.scratch.mountpoint().join("sleep_millisecs"), "20").unwrap();
    (0..5).for_each(|at| first.register(17 + at * 2, 1));
    hear_all();
    let mut third = Agent::join(&socket);
    (0..9).for_each(|at| third.register(16 + at * 2, 1));
    hear_all();
    assert!(third.hear_would_wait());
    drop(third);
    wait_for("room for other regions", || {
        let mut next = Agent::join(&socket);
        (0..9).for_each(|at| {
            next.offer(&ToDaemon::Register {
                range: PageRun {
                    start: 16 + at * 2,
                    len: 1,
                },
            });
        });
        hear_all();
        next.hear_would_wait()
    });
}

#[test]
fn peers_that_break_the_protocol_are_cut_off_and_nobody_else_notices() {
    let mounted = Mounted::new();
    let socket = mounted.scratch.socket();
    let mut honest = Agent::join(&socket);

    let mut garbage = Agent::connect(&socket);
    garbage.say_bytes(b"GET / HTTP/1.1\r\n");
    assert!(matches!(garbage.hear(), Heard::HungUp));

    let mut unfit = Agent::connect(&socket);
    unfit.register(1, 1);
    assert!(
        matches!(unfit.hear(), Heard::HungUp),
        "nothing goes before the greeting"
    );

    let mut twice = Agent::join(&socket);
    twice.say(&ToDaemon::Hello(Hello {
        pid: std::process::id(),
        parent: 0,
        birth: Birth::default(),
        versions: Versions::SPOKEN,
        label: Label::default(),
    }));
    assert!(matches!(twice.hear(), Heard::HungUp));

    let mut long = Agent::join(&socket);
    let size = 2 * MAX_MESSAGE;
    rustix::net::sockopt::set_socket_send_buffer_size(&long.socket, 4 * size).unwrap();
    long.say_bytes(&vec![0; size]);
    assert!(matches!(long.hear(), Heard::HungUp));

    let mut liar = Agent::join(&socket);
    liar.report(OrderId(77), ReportRef::Unmerged { end: 5 });
    assert!(matches!(liar.hear(), Heard::HungUp), "a report on no order");

    // The honest one still has its connection, and the files answer.
    honest.register(100, 4);
    mounted.write("run", "1").unwrap();
    assert!(matches!(honest.order().1, Order::Visit { .. }));
}

#[test]
fn a_report_that_does_not_fit_its_order_ends_the_connection() {
    let mounted = eager();
    let mut agent = Agent::join(&mounted.scratch.socket());
    agent.register(100, 4);
    let (id, _) = agent.order();
    let beyond = [visit_run(5000, 1, VisitState::Changed)];
    agent.report(
        id,
        ReportRef::Visited {
            end: 5001,
            zero_pages: 0,
            runs: &beyond,
            digests: &[],
        },
    );
    assert!(matches!(agent.hear(), Heard::HungUp));
}

#[test]
fn whatever_an_agent_said_before_a_write_is_known_to_it() {
    // Several rounds, because a wrong order need not show every time.
    for _ in 0..10 {
        let scratch = Scratch::new();
        let daemon = Daemon::start(&scratch);
        let mut agent = Agent::join(&scratch.socket());
        let run = scratch.mountpoint().join("run");
        let run = OpenOptions::new().write(true).open(run).unwrap();
        // Stopped, so that the messages and the write wait for the daemon together.
        daemon.freeze();
        for region in 0..200 {
            agent.register(1000 + region * 10, 4);
        }
        agent.say(&ToDaemon::Unregister {
            range: PageRun::between(0, 2990),
        });
        let writer = write_and_wait(run, b"1");
        daemon.thaw();
        assert_eq!(writer.join().unwrap().unwrap(), 1);
        let (_, order) = agent.order();
        let Order::Visit { range, .. } = order else {
            panic!("{order:?} instead of a visit");
        };
        assert_eq!(range.intersection(PageRun::between(0, 2990)), None);
    }
}

#[test]
fn pages_that_an_agent_reports_show_in_the_counters_and_in_its_own_figures() {
    let mounted = eager();
    let socket = mounted.scratch.socket();
    let mut agent = Agent::join(&socket);
    agent.register(100, 4);
    let (id, order) = agent.order();
    answer_visit(&mut agent, id, &order, Some(VisitState::Changed));
    wait_for("the pages to be counted", || {
        mounted.number("pages_volatile") == 4
    });
    assert!(mounted.number("pages_scanned") >= 4);

    let mut asking = Agent::connect(&socket);
    for _ in 0..2 {
        asking.say(&ToDaemon::Query);
        let Heard::Figures(figures) = asking.hear() else {
            panic!("no figures");
        };
        assert_eq!((figures.rmap_items, figures.profit), (4, -4 * 64));
    }
    drop(agent);
    wait_for("the agent to be forgotten", || {
        asking.say(&ToDaemon::Query);
        matches!(asking.hear(), Heard::Figures(figures) if figures.rmap_items == 0)
    });
}

#[test]
fn whoever_asks_is_told_where_the_files_are() {
    let mounted = Mounted::new();
    let mut asking = Agent::connect(&mounted.scratch.socket());
    asking.say(&ToDaemon::Locate);
    let Heard::Mount(device) = asking.hear() else {
        panic!("no device");
    };
    let found = ksmfs::mountpoint::path_of(device);
    assert_eq!(found, Some(mounted.scratch.mountpoint()));
}

#[test]
fn a_writer_of_run_2_waits_for_the_unmerge_while_others_read_and_write() {
    let mounted = eager();
    let mut agent = Agent::join(&mounted.scratch.socket());
    agent.register(100, 4);
    let (id, order) = agent.order();
    answer_visit(&mut agent, id, &order, Some(VisitState::Changed));
    wait_for("the pages to be counted", || {
        mounted.number("pages_volatile") == 4
    });

    let run = OpenOptions::new()
        .write(true)
        .open(mounted.file("run"))
        .unwrap();
    let writer = write_and_wait(run, b"2\n");
    let (id, range) = loop {
        match agent.order() {
            (id, Order::Unmerge { range }) => break (id, range),
            (id, order) => answer_visit(&mut agent, id, &order, Some(VisitState::Changed)),
        }
    };
    // The unmerge is under way and the writer waits for it; nobody else does.
    for value in 0..50 {
        mounted.write("pages_to_scan", &value.to_string()).unwrap();
        assert_eq!(mounted.number("pages_to_scan"), value);
        mounted.read("pages_shared");
    }
    assert!(
        !writer.is_finished(),
        "it returned before the unmerge was done"
    );
    agent.report(id, ReportRef::Unmerged { end: range.end() });
    assert_eq!(writer.join().unwrap().unwrap(), 2);
    assert_eq!(mounted.read("run"), "2\n");
    assert_eq!(mounted.number("full_scans"), 0);
    assert_eq!(mounted.number("pages_volatile"), 0);
}

#[test]
fn a_daemon_that_stops_answers_a_waiting_writer() {
    let mounted = eager();
    let mut agent = Agent::join(&mounted.scratch.socket());
    agent.register(100, 4);
    let (id, order) = agent.order();
    answer_visit(&mut agent, id, &order, Some(VisitState::Changed));
    wait_for("the pages to be counted", || {
        mounted.number("pages_volatile") == 4
    });
    let run = OpenOptions::new()
        .write(true)
        .open(mounted.file("run"))
        .unwrap();
    let writer = write_and_wait(run, b"2");
    loop {
        match agent.order() {
            (_, Order::Unmerge { .. }) => break,
            (id, order) => answer_visit(&mut agent, id, &order, Some(VisitState::Changed)),
        }
    }
    let Mounted { running, scratch } = mounted;
    running.stop();
    assert_eq!(stage::errno(writer.join().unwrap()), Some(Errno::INTR));
    assert!(!scratch.is_mounted());
}

#[test]
fn two_agents_with_one_page_are_ordered_to_map_one_read_only_slot() {
    let mounted = eager();
    let socket = mounted.scratch.socket();
    let page = [0x5a_u8; PAGE_SIZE];
    let mut agents = [Agent::join(&socket), Agent::join(&socket)];
    let buffers = agents
        .each_ref()
        .map(|agent| agent.descriptors[0].as_fd().try_clone_to_owned().unwrap());
    let salt = agents[0].salt.unwrap();
    assert_eq!(agents[1].salt, Some(salt), "one user, one domain");
    for agent in &mut agents {
        agent.register(100, 1);
    }
    let mut mapped = [false; 2];
    let deadline = std::time::Instant::now() + stage::DEADLINE;
    while mapped != [true; 2] {
        assert!(std::time::Instant::now() < deadline, "never merged");
        for (which, agent) in agents.iter_mut().enumerate() {
            let Some((id, order)) = agent.order_if_any() else {
                continue;
            };
            serve(
                agent,
                id,
                &order,
                &page,
                salt,
                &buffers[which],
                &mut mapped[which],
            );
        }
    }
    wait_for("the counters to follow", || {
        for (which, agent) in agents.iter_mut().enumerate() {
            if let Some((id, order)) = agent.order_if_any() {
                serve(
                    agent,
                    id,
                    &order,
                    &page,
                    salt,
                    &buffers[which],
                    &mut mapped[which],
                );
            }
        }
        mounted.number("pages_shared") == 1 && mounted.number("pages_sharing") == 1
    });
}

/// Plays an agent whose one page holds `page`, and checks the arena that it is to map.
fn serve(
    agent: &mut Agent,
    id: OrderId,
    order: &Order,
    page: &[u8; PAGE_SIZE],
    salt: Salt,
    buffer: &OwnedFd,
    mapped: &mut bool,
) {
    let done = [OutcomeRun {
        start: 100,
        len: 1,
        outcome: Outcome::Done as u32,
    }];
    match order {
        Order::Visit { range, .. } => {
            let (state, slot, digests) = match agent.slot {
                Some(slot) => (VisitState::Merged, slot, vec![]),
                None if agent.visits == 0 => (VisitState::Changed, NO_SLOT, vec![]),
                None => (VisitState::Calm, NO_SLOT, vec![salt.digest(page)]),
            };
            agent.visits += 1;
            let runs = [VisitRun {
                start: 100,
                len: 1,
                state: state as u32,
                slot,
            }];
            let runs = if range.contains(100) { &runs[..] } else { &[] };
            let report = ReportRef::Visited {
                end: range.end(),
                zero_pages: 0,
                runs,
                digests: &digests,
            };
            agent.report(id, report);
        }
        Order::Donate { runs } => {
            assert_eq!(runs.len(), 1);
            assert_eq!(rustix::io::pwrite(buffer, page, 0), Ok(PAGE_SIZE));
            agent.report(id, ReportRef::Done { outcomes: &done });
        }
        Order::Map { arena, runs } => {
            let arena_fd = &agent.descriptors[0];
            let mut bytes = [0; PAGE_SIZE];
            let at = u64::from(runs[0].slot) * PAGE_SIZE as u64;
            assert_eq!(rustix::io::pread(arena_fd, &mut bytes, at), Ok(PAGE_SIZE));
            assert_eq!(&bytes, page);
            assert_eq!(rustix::io::pwrite(arena_fd, b"x", at), Err(Errno::BADF));
            agent.slot = Some(Slot {
                arena: *arena,
                index: runs[0].slot,
            });
            *mapped = true;
            agent.report(id, ReportRef::Done { outcomes: &done });
        }
        other => panic!("{other:?}"),
    }
}

/// A memfd as a daemon of this user would have made it for a domain, with one slot that is not zero.
fn as_an_arena(domain: u32, seals: SealFlags) -> OwnedFd {
    let name = format!("ksm-arena-1 domain={domain} node=any slots=8192");
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let memfd = rustix::fs::memfd_create(name, flags).unwrap();
    rustix::fs::ftruncate(&memfd, 8192 * PAGE_SIZE as u64).unwrap();
    rustix::io::pwrite(&memfd, &[5; PAGE_SIZE], 0).unwrap();
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn inode_of(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

const SEALED: SealFlags = SealFlags::GROW
    .union(SealFlags::SHRINK)
    .union(SealFlags::WRITE);

/// Answers orders to an agent that has nothing mapped.
fn answer(agent: &mut Agent, heard: Heard) {
    match heard {
        Heard::Order(id, Order::Count) => {
            agent.report(id, ReportRef::Counted { zero_pages: 0 });
        }
        Heard::Order(id, order) => answer_visit(agent, id, &order, None),
        other => panic!("{other:?}"),
    }
}

/// Takes in what there is.
fn take_in(agent: &mut Agent) {
    while let Some(heard) = agent.hear_within(std::time::Duration::ZERO) {
        answer(agent, heard);
    }
}

/// Has figures told, after which everything said before has been heard.
fn is_heard(daemon: &Mounted) {
    let mut asking = Agent::connect(&daemon.scratch.socket());
    asking.say(&ToDaemon::Query);
    assert!(matches!(asking.hear(), Heard::Figures(_)));
}

#[test]
fn arenas_are_taken_over_if_the_kernel_vouches_for_them_and_not_on_a_peers_word() {
    let daemon = Mounted::new();
    let own = rustix::process::geteuid().as_raw();
    let mut agent = Agent::join(&daemon.scratch.socket());
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    let foreign = as_an_arena(own + 1, SEALED);
    let changeable = as_an_arena(own, SealFlags::GROW | SealFlags::SHRINK);
    let theirs = as_an_arena(own, SEALED);
    rustix::fs::fchown(&theirs, Some(Uid::from_raw(own + 1)), None).unwrap();
    let genuine = as_an_arena(own, SEALED);
    let half_filled = as_an_arena(
        own,
        SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE,
    );
    let all = [
        &pipe,
        &file,
        &foreign,
        &changeable,
        &theirs,
        &genuine,
        &half_filled,
    ];
    agent.hand_in(&all, inode_of);
    wait_for("two arenas to be taken over", || {
        is_heard(&daemon);
        take_in(&mut agent);
        agent.names.len() == 2
    });
    let mut tags: Vec<_> = agent.names.iter().map(|named| named.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [5, 6]);
    let seals = rustix::fs::fcntl_get_seals(&half_filled).unwrap();
    assert!(
        seals.contains(SealFlags::WRITE),
        "it is sealed for good: {seals:?}"
    );
    // Whoever has no descriptor gets the same names for the inodes, and no others.
    let mut child = Agent::join(&daemon.scratch.socket());
    child.hold(&all.map(inode_of));
    wait_for("the child to be told", || {
        is_heard(&daemon);
        take_in(&mut child);
        child.names.len() == 2
    });
    let names = |agent: &Agent| -> std::collections::BTreeSet<_> {
        agent
            .names
            .iter()
            .map(|named| (named.tag, named.arena))
            .collect()
    };
    assert_eq!(names(&child), names(&agent));
    // They are let go when no process turns out to have them mapped. Nothing was ever merged here.
    agent.register(100, 1);
    let write = |file: &str, value: &str| {
        fs::write(daemon.scratch.mountpoint().join(file), value).unwrap();
    };
    write("sleep_millisecs", "0");
    write("run", "1");
    while agent.let_go.len() < 2 {
        let heard = agent.hear();
        answer(&mut agent, heard);
    }
}

/// The number of a domain that is not simply a user is given out anew by each daemon: under it an earlier one may have
/// merged what has to stay apart now.
#[test]
fn nothing_is_taken_over_for_domains_whose_numbers_are_given_out() {
    let daemon = Mounted::with(|options| ksmfs::Options {
        policy: "merge uid 0 uid 1".parse().unwrap(),
        ..options
    });
    let own = rustix::process::geteuid().as_raw();
    let mut agent = Agent::join(&daemon.scratch.socket());
    let all = [
        &as_an_arena(0xf000_0000, SEALED),
        &as_an_arena(own, SEALED),
        &as_an_arena(
            0xf000_0000,
            SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE,
        ),
    ];
    agent.hand_in(&all, inode_of);
    is_heard(&daemon);
    take_in(&mut agent);
    assert_eq!(agent.names, []);
    let seals = rustix::fs::fcntl_get_seals(all[2]).unwrap();
    assert!(!seals.contains(SealFlags::WRITE), "{seals:?}");
}

/// Older agents are refused in words that they know.
#[test]
fn a_policys_refusal_is_understood_by_agents_of_all_versions() {
    let daemon = Mounted::with(|options| ksmfs::Options {
        policy: "never uid 0\nlabel web uid 1".parse().unwrap(),
        ..options
    });
    let greet = |version: u16, label: &str| {
        let mut agent = Agent::connect(&daemon.scratch.socket());
        agent.say(&ToDaemon::Hello(Hello {
            pid: std::process::id(),
            parent: 0,
            birth: Birth::default(),
            versions: Versions::only(version),
            label: Label::new(label).unwrap(),
        }));
        agent.hear()
    };
    for version in 4..7 {
        let heard = greet(version, "");
        assert!(
            matches!(heard, Heard::Refused(RefusalReason::TooMany)),
            "{version}: {heard:?}"
        );
        let heard = greet(version, "web");
        assert!(matches!(heard, Heard::HungUp), "{version}: {heard:?}");
    }
    for label in ["", "web"] {
        let heard = greet(7, label);
        assert!(
            matches!(heard, Heard::Refused(RefusalReason::Policy)),
            "{label}: {heard:?}"
        );
    }
}

/// A socket whose last close waits for an hour: nobody takes what was sent.
fn lingering() -> (OwnedFd, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_nonblocking(true).unwrap();
    while rustix::io::write(&stream, &[0; 65536]).is_ok() {}
    let time = Some(std::time::Duration::from_secs(3600));
    rustix::net::sockopt::set_socket_linger(&stream, time).unwrap();
    (stream.into(), listener)
}

#[test]
fn a_descriptor_that_takes_long_to_close_holds_nobody_up() {
    let daemon = Mounted::new();
    let mut listeners = Vec::new();
    for way in (0..3).cycle().take(15) {
        let mut agent = Agent::join(&daemon.scratch.socket());
        let (slow, listener) = lingering();
        listeners.push(listener);
        match way {
            // Where descriptors may come.
            0 => agent.hand_in(&[&slow], |_| 1),
            // Where none may.
            1 => agent.say_with(&ToDaemon::AllSaid, &[&slow]),
            // In what nobody ever reads.
            _ => {
                agent.say_bytes(b"nonsense");
                agent.hand_in(&[&slow], |_| 1);
            }
        }
        // Whoever closes it last waits: the daemon, or this thread.
        std::thread::spawn(move || drop(slow));
        is_heard(&daemon);
        drop(agent);
        is_heard(&daemon);
    }
}

/// A message of the protocol's version 4 or another one, with nothing behind the header.
fn bare_message(version: u16, kind: u16, scalars: [u64; 3]) -> Vec<u8> {
    let mut bytes = b"ksm\x01".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(scalars.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([0; 8]);
    bytes
}

/// The next message as it came; empty if the daemon hung up.
fn next_bytes(agent: &Agent) -> Vec<u8> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let flags = rustix::net::RecvFlags::empty();
    let got = rustix::net::recv(&agent.socket, &mut bytes[..], flags);
    bytes.truncate(got.map_or(0, |(_, len)| len));
    bytes
}

#[test]
fn an_older_client_is_spoken_to_as_it_speaks_itself() {
    let daemon = eager();
    let pid = std::process::id().into();
    let agent = Agent::connect(&daemon.scratch.socket());
    agent.say_bytes(&bare_message(4, 1, [pid, 0, 0]));
    let welcome = next_bytes(&agent);
    assert_eq!(welcome[..8], *b"ksm\x01\x04\x00\x01\x00");
    agent.say_bytes(&bare_message(4, 3, [1000, 5, 0]));
    agent.say_bytes(&bare_message(4, 10, [0, 0, 0]));
    let order = next_bytes(&agent);
    assert_eq!(order[..8], *b"ksm\x01\x04\x00\x04\x00", "a visit");
    // A message of another version, though it is spoken, ends the connection.
    agent.say_bytes(&bare_message(5, 3, [2000, 5, 0]));
    while !next_bytes(&agent).is_empty() {}
}

#[test]
fn a_client_with_no_version_in_common_is_told_so() {
    let daemon = Mounted::new();
    let pid = std::process::id().into();
    for version in [0, 1, 2, 3, 8, 77, u16::MAX] {
        let agent = Agent::connect(&daemon.scratch.socket());
        agent.say_bytes(&bare_message(version, 1, [pid, 0, 0]));
        let refusal = next_bytes(&agent);
        assert_eq!(refusal[4..6], version.to_le_bytes(), "in its own version");
        assert_eq!(refusal[6..8], [2, 0], "refused");
        assert_eq!(refusal[16..24], 4_u64.to_le_bytes(), "for its version");
        assert!(next_bytes(&agent).is_empty(), "and hung up on");
    }
}
