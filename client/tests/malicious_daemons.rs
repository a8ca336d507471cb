//! Daemons that mean harm: the worst that they can do is not to merge.
//!
//! One app meets all of them in turn. It holds memory that it has registered and memory that it has not, goes on through
//! everything, and has every byte in the end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod daemon_double;

use daemon_double::{App, DaemonDouble, Peer, await_end, pause, say};
use ksm_client::{Client, Config};
use ksm_engine::digest::Salt;
use ksm_engine::order::{MapRun, Order, Outcome, ReportRef};
use ksm_engine::page::{ArenaId, PAGE_SIZE, PageRun};
use ksm_engine::wire::{BUFFER_PAGES, MAX_MESSAGE, ToAgent, ToDaemon};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const PAGES: usize = 16;
const SECRET: u8 = 0x5e;
const WELCOME: ToAgent<'_> = ToAgent::Welcome {
    salt: Salt([7; 32]),
};
const SEALED: SealFlags = SealFlags::GROW
    .union(SealFlags::SHRINK)
    .union(SealFlags::WRITE);

fn run_of(bytes: &[u8]) -> PageRun {
    PageRun {
        start: (bytes.as_ptr().addr() / PAGE_SIZE) as u64,
        len: (bytes.len() / PAGE_SIZE) as u64,
    }
}

fn say_run(run: PageRun) {
    say(&format!("{} {}", run.start, run.len));
}

/// Holds a region of page k filled with k, and pages that it has not registered.
#[test]
#[ignore = "an app"]
fn app_that_keeps_a_secret() {
    let client = Client::start(&Config::default().socket(daemon_double::socket())).unwrap();
    let mut region = client.allocate(PAGES * PAGE_SIZE).unwrap();
    for (k, page) in (1..).zip(region.chunks_exact_mut(PAGE_SIZE)) {
        page.fill(k);
    }
    let heap = vec![SECRET; (PAGES + 1) * PAGE_SIZE];
    let skip = heap.as_ptr().align_offset(PAGE_SIZE);
    let secret = &heap[skip..skip + PAGES * PAGE_SIZE];
    say_run(run_of(&region));
    say_run(run_of(secret));
    pause();
    for (k, page) in (1..).zip(region.chunks_exact(PAGE_SIZE)) {
        assert!(page.iter().all(|byte| *byte == k), "page {k} of the region");
    }
    assert!(heap.iter().all(|byte| *byte == SECRET), "other memory");
}

fn memfd(pages: usize, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let memfd = rustix::fs::memfd_create("evil", flags).unwrap();
    for page in 0..pages {
        let bytes = [u8::try_from(page % 255).unwrap() + 1; PAGE_SIZE];
        rustix::io::pwrite(&memfd, &bytes, (page * PAGE_SIZE) as u64).unwrap();
    }
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    memfd
}

fn device() -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/userfaultfd", flags, Mode::empty()).unwrap()
}

/// Receives the greeting and answers it with these descriptors.
fn welcome_with(daemon: &DaemonDouble, descriptors: &[BorrowedFd<'_>]) -> Peer {
    let mut peer = daemon.accept();
    assert!(matches!(peer.receive(), Some(ToDaemon::Hello(_))));
    peer.send(&WELCOME, descriptors);
    peer
}

/// What became of the pages of an order: outcomes, with their numbers of pages.
fn outcomes(peer: &mut Peer, order: &Order, arena: Option<BorrowedFd<'_>>) -> Vec<Outcome> {
    peer.order(order, arena);
    loop {
        match peer.receive().expect("the agent is there") {
            ToDaemon::Report {
                report: ReportRef::Done { outcomes },
                ..
            } => {
                let outcome = |number| Outcome::from_number(number).unwrap();
                return outcomes.iter().map(|run| outcome(run.outcome)).collect();
            }
            other @ ToDaemon::Report { .. } => panic!("{other:?}"),
            // Notices.
            _ => {}
        }
    }
}

fn map(arena: u32, pages: PageRun, slot: u32) -> Order {
    Order::Map {
        arena: ArenaId(arena),
        runs: vec![MapRun {
            start: pages.start,
            len: u32::try_from(pages.len).unwrap(),
            slot,
        }],
    }
}

#[test]
fn whatever_is_in_a_welcome_the_next_daemon_is_served() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_keeps_a_secret", &daemon.path());
    let region = {
        let fixed = SealFlags::GROW | SealFlags::SHRINK;
        let good = memfd(BUFFER_PAGES, fixed);
        let shrinkable = memfd(BUFFER_PAGES, SealFlags::GROW);
        let small = memfd(1, fixed);
        let unwritable = memfd(BUFFER_PAGES, SEALED);
        let file = tempfile::tempfile().unwrap();
        file.set_len((BUFFER_PAGES * PAGE_SIZE) as u64).unwrap();
        let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
        let device = device();
        let welcomes: [&[BorrowedFd<'_>]; 8] = [
            &[],
            &[shrinkable.as_fd(), device.as_fd()],
            &[small.as_fd(), device.as_fd()],
            &[unwritable.as_fd(), device.as_fd()],
            &[file.as_fd(), device.as_fd()],
            &[pipe.as_fd(), device.as_fd()],
            &[device.as_fd(), good.as_fd()],
            // No userfaultfd, but a pipe.
            &[good.as_fd(), pipe.as_fd()],
        ];
        for welcome in welcomes {
            let mut peer = welcome_with(&daemon, welcome);
            // It hangs up, without a word; or, where the app has what it needs, goes on.
            while let Some(message) = peer.receive() {
                assert!(matches!(message, ToDaemon::Register { .. }), "{message:?}");
            }
        }
        app.hear_run()
    };
    let mut peer = daemon.welcome();
    peer.await_registration(region);
    assert!(peer.visit(region));
    app.finish();
}

#[test]
fn what_is_no_message_ends_the_connection_and_no_more() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_keeps_a_secret", &daemon.path());
    let region = {
        let mut peer = daemon.welcome();
        let region = app.hear_run();
        peer.await_registration(region);
        region
    };
    let long = vec![0; MAX_MESSAGE + 1];
    let header = *b"ksm\x01\x04\x00\x06\x00";
    for garbage in [
        &b"x"[..],
        b"HTTP/1.1 200 OK\r\n\r\n",
        &long[..],
        &header[..],
    ] {
        let mut peer = daemon.welcome();
        peer.await_registration(region);
        peer.send_bytes(garbage);
        while let Some(message) = peer.receive() {
            assert!(!matches!(message, ToDaemon::Report { .. }), "{message:?}");
        }
    }
    // A second welcome, and figures that nobody asked for.
    for message in [
        WELCOME,
        ToAgent::Figures(ksm_engine::wire::Figures::default()),
    ] {
        let mut peer = daemon.welcome();
        peer.await_registration(region);
        peer.send(&message, &[]);
        while peer.receive().is_some() {}
    }
    let mut peer = daemon.welcome();
    peer.await_registration(region);
    assert!(peer.visit(region));
    app.finish();
}

#[test]
fn orders_reach_registered_pages_only_and_no_byte_is_taken_on_trust() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_keeps_a_secret", &daemon.path());
    let donation = memfd(BUFFER_PAGES, SealFlags::GROW | SealFlags::SHRINK);
    let device = device();
    let mut peer = welcome_with(&daemon, &[donation.as_fd(), device.as_fd()]);
    let region = app.hear_run();
    let secret = app.hear_run();
    peer.await_registration(region);
    let is_seen = |byte: u8| {
        let mut page = [0; PAGE_SIZE];
        (0..BUFFER_PAGES as u64 - 1).any(|index| {
            rustix::io::pread(&donation, &mut page, index * PAGE_SIZE as u64).unwrap();
            page == [byte; PAGE_SIZE]
        })
    };
    // The buffer began with the bytes of an arena.
    for page in 0..BUFFER_PAGES as u64 - 1 {
        rustix::io::pwrite(&donation, &[0; PAGE_SIZE], page * PAGE_SIZE as u64).unwrap();
    }

    // Memory that was not registered is neither shown, nor looked at, nor replaced.
    let runs = vec![secret];
    let refused = outcomes(&mut peer, &Order::Donate { runs }, None);
    assert_eq!(refused, [Outcome::Unsuitable]);
    assert!(
        !is_seen(SECRET),
        "the daemon was shown memory that is not registered"
    );
    let twin = memfd(256, SealFlags::empty());
    for page in 0..PAGES as u64 {
        rustix::io::pwrite(&twin, &[SECRET; PAGE_SIZE], page * PAGE_SIZE as u64).unwrap();
    }
    rustix::fs::fcntl_add_seals(&twin, SEALED).unwrap();
    let refused = outcomes(&mut peer, &map(1, secret, 0), Some(twin.as_fd()));
    assert_eq!(refused, [Outcome::Unsuitable]);
    let refused = outcomes(&mut peer, &Order::Zero { runs: vec![secret] }, None);
    assert_eq!(refused, [Outcome::Unsuitable]);
    peer.order(&Order::Unmerge { range: secret }, None);
    while !matches!(peer.receive(), Some(ToDaemon::Report { .. })) {}
    // Everything there is.
    assert!(peer.visit(PageRun {
        start: 1,
        len: (1 << 35) - 2
    }));

    // Registered memory is mapped to its very bytes only, and only where they can never change or go.
    let other = memfd(256, SEALED);
    let swapped = PageRun {
        start: region.start,
        len: 2,
    };
    let refused = outcomes(&mut peer, &map(2, swapped, 5), Some(other.as_fd()));
    assert_eq!(refused, [Outcome::Changed]);
    for seals in [
        SealFlags::empty(),
        SealFlags::GROW | SealFlags::WRITE,
        SealFlags::GROW | SealFlags::SHRINK,
    ] {
        let open_to_change = memfd(PAGES, seals);
        let refused = outcomes(&mut peer, &map(3, region, 0), Some(open_to_change.as_fd()));
        assert_eq!(refused, [Outcome::Failed], "{seals:?}");
    }
    let small = memfd(PAGES - 1, SEALED);
    let refused = outcomes(&mut peer, &map(4, region, 0), Some(small.as_fd()));
    assert_eq!(refused, [Outcome::Failed]);
    let refused = outcomes(&mut peer, &map(4, region, 1000), Some(small.as_fd()));
    assert_eq!(refused, [Outcome::Failed]);
    let refused = outcomes(&mut peer, &map(4, region, 0), None);
    assert_eq!(refused, [Outcome::Failed]);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let refused = outcomes(&mut peer, &map(5, region, 0), Some(file.as_fd()));
    assert_eq!(refused, [Outcome::Failed]);

    // What is right is done, also twice and overlapping.
    let right = memfd(PAGES, SEALED);
    for _ in 0..2 {
        let done = outcomes(&mut peer, &map(6, region, 0), Some(right.as_fd()));
        assert_eq!(done, [Outcome::Done]);
    }
    let overlapping = Order::Donate {
        runs: vec![region, region, swapped],
    };
    let done = outcomes(&mut peer, &overlapping, None);
    assert!(
        done.iter().all(|outcome| *outcome == Outcome::Done),
        "{done:?}"
    );
    assert!(is_seen(1), "what is registered is donated");
    app.finish();
}

#[test]
fn a_donation_buffer_with_holes_and_a_daemon_that_is_gone_do_no_harm() {
    let daemon = DaemonDouble::new();
    let mut app = App::start("app_that_keeps_a_secret", &daemon.path());
    let donation = memfd(BUFFER_PAGES, SealFlags::GROW | SealFlags::SHRINK);
    let device = device();
    let mut peer = welcome_with(&daemon, &[donation.as_fd(), device.as_fd()]);
    let region = app.hear_run();
    peer.await_registration(region);
    for _ in 0..50 {
        use rustix::fs::FallocateFlags;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let whole = (BUFFER_PAGES * PAGE_SIZE) as u64;
        rustix::fs::fallocate(&donation, punch, 0, whole).unwrap();
        let runs = vec![region];
        let done = outcomes(&mut peer, &Order::Donate { runs }, None);
        assert_eq!(done, [Outcome::Done]);
    }
    peer.order(&Order::Donate { runs: vec![region] }, None);
    drop((peer, donation));
    let mut peer = daemon.welcome();
    peer.await_registration(region);
    assert!(peer.visit(region));
    let pid = app.pid();
    app.finish();
    await_end(pid);
}
