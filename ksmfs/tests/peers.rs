//! What the daemon does with those who connect: the honest, the lying, the silent and the many.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stage;

use ksm_engine::digest::Salt;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{Order, OrderId, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState};
use ksm_engine::page::{ArenaId, PAGE_SIZE, PageRun, Slot};
use ksm_engine::wire::{BUFFER_PAGES, Birth, Hello, Label, MAX_MESSAGE, RefusalReason, ToDaemon};
use ksmfs::quotas::Quotas;
use rustix::io::Errno;
use stage::agent::{Agent, Heard};
use stage::{Daemon, Mounted, Scratch, wait_for, write_and_wait};
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;

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
    buffer: &std::os::fd::OwnedFd,
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
