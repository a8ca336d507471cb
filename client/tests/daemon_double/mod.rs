//! A daemon for tests: speaks the wire protocol over a socket in a temporary directory, and decides nothing itself.
//!
//! And the apps it serves: this very test program, started again to run one function (see [`App`]).
#![allow(dead_code, reason = "no test program uses all of it")]

use ksm_engine::digest::Salt;
use ksm_engine::order::{Order, OrderId, ReportRef, VisitState};
use ksm_engine::page::{PAGE_SIZE, PageRun};
use ksm_engine::wire::{
    BUFFER_PAGES, HANDED_IN, HeldArena, Hello, MessageBuffer, ToAgent, ToDaemon, Version,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// Generous: the tests must pass beside a process that hogs the core.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Waits until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct DaemonDouble {
    listener: OwnedFd,
    directory: tempfile::TempDir,
}

impl DaemonDouble {
    /// Listens at a path of its own.
    pub fn new() -> Self {
        Self::in_directory(tempfile::tempdir().expect("a temporary directory"))
    }

    /// Listens in `directory`, at the path that [`path_in`] gives.
    pub fn in_directory(directory: tempfile::TempDir) -> Self {
        let listener = listen(&path_in(directory.path()));
        Self {
            listener,
            directory,
        }
    }

    /// Where it listens.
    pub fn path(&self) -> PathBuf {
        path_in(self.directory.path())
    }

    /// Stops listening; the path stays.
    pub fn stop(self) -> tempfile::TempDir {
        std::fs::remove_file(self.path()).expect("the socket is there");
        self.directory
    }

    /// Waits for somebody to connect.
    pub fn accept(&self) -> Peer {
        assert!(self.has_caller(DEADLINE), "nobody connected");
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::accept_with(&self.listener, flags).expect("somebody is there");
        Peer::new(socket)
    }

    /// Waits for an agent, and welcomes it.
    pub fn welcome(&self) -> Peer {
        let mut peer = self.accept();
        peer.welcome();
        peer
    }

    /// Whether somebody wants to connect, or does within `time`.
    pub fn has_caller(&self, time: Duration) -> bool {
        is_readable(&self.listener, time)
    }
}

/// The socket's path in a directory.
pub fn path_in(directory: &Path) -> PathBuf {
    directory.join("ksmfs.sock")
}

/// Listens at a path.
pub fn listen(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).expect("socket");
    let address = SocketAddrUnix::new(path).expect("a short path");
    rustix::net::bind(&socket, &address).expect("bind");
    rustix::net::listen(&socket, 16).expect("listen");
    // Whoever the app is, it may connect.
    let everybody = Mode::from_raw_mode(0o777);
    rustix::fs::chmod(path, everybody).expect("chmod of the socket");
    let parent = path.parent().expect("a directory");
    let _ = rustix::fs::chmod(parent, Mode::from_raw_mode(0o755));
    socket
}

/// An agent, seen from the daemon.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    buffer: Box<MessageBuffer>,
    /// What it greeted with.
    pub hello: Option<Hello>,
    /// Descriptors of the last message.
    pub descriptors: Vec<OwnedFd>,
    /// The version of the protocol that it asked for figures in: without a greeting, answers have the same.
    asked_in: Option<Version>,
    orders: u64,
}

impl Peer {
    fn new(socket: OwnedFd) -> Self {
        let zeroes = [0; size_of::<MessageBuffer>()];
        let buffer = MessageBuffer::read_from_bytes(&zeroes).expect("the right size");
        Self {
            socket,
            buffer: Box::new(buffer),
            hello: None,
            descriptors: Vec::new(),
            asked_in: None,
            orders: 0,
        }
    }

    /// Uid and pid of the process that connected.
    pub fn credentials(&self) -> (u32, u32) {
        let peer = sockopt::socket_peercred(&self.socket).expect("a connected socket");
        (peer.uid.as_raw(), peer.pid.as_raw_pid().unsigned_abs())
    }

    /// The next message, or `None` when the peer has hung up.
    pub fn receive(&mut self) -> Option<ToDaemon<'_>> {
        assert!(
            is_readable(&self.socket, DEADLINE),
            "the agent says nothing"
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_IN))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut self.buffer.0)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.socket, &mut parts, &mut control, flags).ok()?;
        self.descriptors.clear();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptors.extend(rights);
            }
        }
        let bytes = &self.buffer.0[..received.bytes];
        let message = (received.bytes > 0).then(|| ToDaemon::decode(bytes).expect("valid"))?;
        let count = self.descriptors.len();
        match message {
            ToDaemon::Holds { arenas } => assert!(count == 0 || count == arenas.len()),
            _ => assert_eq!(count, 0, "no other message carries descriptors"),
        }
        if matches!(message, ToDaemon::Query) {
            self.asked_in = Version::of(bytes);
        }
        Some(message)
    }

    /// Receives the greeting and answers it, with `/dev/userfaultfd`.
    pub fn welcome(&mut self) {
        self.welcome_with(Salt([7; 32]));
    }

    /// The same as a daemon with this salt.
    pub fn welcome_with(&mut self, salt: Salt) {
        let Some(ToDaemon::Hello(hello)) = self.receive() else {
            panic!("the first message of an agent is its greeting");
        };
        self.hello = Some(hello);
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let donation = rustix::fs::memfd_create("donation", flags).expect("memfd");
        rustix::fs::ftruncate(&donation, (BUFFER_PAGES * PAGE_SIZE) as u64).expect("ftruncate");
        let seals = SealFlags::GROW | SealFlags::SHRINK;
        rustix::fs::fcntl_add_seals(&donation, seals).expect("seals");
        let device = rustix::fs::open(
            "/dev/userfaultfd",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .expect("the tests run as root");
        self.send(
            &ToAgent::Welcome { salt },
            &[donation.as_fd(), device.as_fd()],
        );
    }

    /// Sends a message.
    pub fn send(&mut self, message: &ToAgent<'_>, descriptors: &[BorrowedFd<'_>]) {
        let len = message.encode(&mut self.buffer).expect("it fits");
        if let Some(version) = self.asked_in {
            version.stamp(&mut self.buffer);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let parts = [IoSlice::new(&self.buffer.0[..len])];
        rustix::net::sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL)
            .expect("the agent is there");
    }

    /// Sends bytes that need not be a message.
    pub fn send_bytes(&self, bytes: &[u8]) {
        rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL).expect("the agent is there");
    }

    /// Sends an order; what comes back is in the next report.
    pub fn order(&mut self, order: &Order, arena: Option<BorrowedFd<'_>>) {
        self.orders += 1;
        let id = OrderId(self.orders);
        let message = ToAgent::Order {
            id,
            order: order.borrow(),
        };
        let descriptors: Vec<_> = arena.into_iter().collect();
        self.send(&message, &descriptors);
    }

    /// Has a range visited, and says whether a report on it came.
    pub fn visit(&mut self, range: PageRun) -> bool {
        let limit = 64;
        let skip = Vec::new();
        self.order(
            &Order::Visit {
                range,
                limit,
                skip,
                nodes: false,
                brief: false,
            },
            None,
        );
        let expected = OrderId(self.orders);
        loop {
            match self.receive() {
                Some(ToDaemon::Report { order, .. }) => return order == expected,
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// Has a range visited, and gives the one state that all its pages are in.
    pub fn state_of(&mut self, range: PageRun) -> VisitState {
        let (limit, skip) = (64, Vec::new());
        self.order(
            &Order::Visit {
                range,
                limit,
                skip,
                nodes: false,
                brief: false,
            },
            None,
        );
        loop {
            match self.receive() {
                Some(ToDaemon::Report {
                    report: ReportRef::Visited { runs, .. },
                    ..
                }) => {
                    let states = runs.iter().map(|run| (run.state, run.pages().len));
                    let (state, pages) = states.fold((0, 0), |(all, sum), (state, len)| {
                        assert!(sum == 0 || all == state, "pages are in different states");
                        (state, sum + len)
                    });
                    assert_eq!(pages, range.len);
                    return VisitState::from_number(state).expect("a state");
                }
                Some(_) => {}
                None => panic!("the agent hung up"),
            }
        }
    }

    /// Receives what the agent says that it has mapped; the descriptors are there until the next message.
    pub fn await_holds(&mut self) -> Vec<HeldArena> {
        loop {
            match self.receive() {
                Some(ToDaemon::Holds { arenas }) => return arenas.to_vec(),
                Some(_) => {}
                None => panic!("the agent hung up before it said what it has"),
            }
        }
    }

    /// Receives notices until all of `range` is registered.
    pub fn await_registration(&mut self, range: PageRun) {
        loop {
            match self.receive() {
                Some(ToDaemon::Register { range: told }) if told.covers(range) => return,
                Some(_) => {}
                None => panic!("the agent hung up before it registered {range:?}"),
            }
        }
    }

    /// Receives notices until all of `range` is unregistered.
    pub fn await_unregistration(&mut self, range: PageRun) {
        loop {
            match self.receive() {
                Some(ToDaemon::Unregister { range: told }) if told.covers(range) => return,
                Some(_) => {}
                None => panic!("the agent hung up before it unregistered {range:?}"),
            }
        }
    }
}

fn is_readable(fd: &OwnedFd, time: Duration) -> bool {
    let time = Timespec::try_from(time).expect("a short time");
    let mut watched = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut watched, Some(&time)).expect("poll") == 1
}

/// The environment variable that names the socket to an app.
const SOCKET: &str = "KSM_TEST_SOCKET";
/// What an app's lines begin with, among those of the test program.
const PREFIX: &str = "app: ";

/// A process that runs one of the `#[ignore]`d tests of the calling program: the app of a scenario. It talks in lines.
#[derive(Debug)]
pub struct App {
    child: Child,
    said: BufReader<ChildStdout>,
    tell: ChildStdin,
}

impl App {
    /// Starts the test `name` as app.
    pub fn start(name: &str, socket: &Path) -> Self {
        let this = std::env::current_exe().expect("a path");
        let mut child = Command::new(this)
            .args([
                name,
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test program starts");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let tell = child.stdin.take().expect("piped");
        Self { child, said, tell }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next thing it says.
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let got = self.said.read_line(&mut line).expect("text");
            assert_ne!(got, 0, "the app ended");
            if let Some((_, said)) = line.trim_end().split_once(PREFIX) {
                return said.to_owned();
            }
        }
    }

    /// The next thing it says, as numbers.
    pub fn hear_numbers(&mut self) -> Vec<u64> {
        let said = self.hear();
        said.split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect()
    }

    /// The next thing it says, as a run of pages.
    pub fn hear_run(&mut self) -> PageRun {
        let [start, len] = self.hear_numbers()[..] else {
            panic!("a run is two numbers");
        };
        PageRun { start, len }
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        writeln!(self.tell, "go on").expect("the app reads");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the app is there");
    }

    /// Lets it go on to its end, which must be a good one.
    pub fn finish(mut self) {
        self.go_on();
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "the app failed: {status}");
    }

    /// Waits for its end, whatever it is.
    pub fn wait(mut self) {
        self.child.wait().expect("wait");
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Fails where it has been waited for, and that is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the app: where the daemon is.
pub fn socket() -> PathBuf {
    std::env::var_os(SOCKET)
        .expect("run by a test that plays the daemon")
        .into()
}

/// In the app: says something to the test.
pub fn say(text: &str) {
    // Not `println!`, for the harness may hold that lock; one write, so that lines stay whole.
    let line = format!("{PREFIX}{text}\n");
    rustix::io::write(std::io::stdout(), line.as_bytes()).expect("the test reads");
}

/// In the app: waits to be told to go on.
pub fn pause() {
    let mut line = String::new();
    let got = std::io::stdin().read_line(&mut line).expect("a line");
    assert_ne!(got, 0, "the test ended");
}

/// The state of a process as `/proc/PID/stat` has it; `None` if there is no such process.
pub fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits until a process runs no more.
pub fn await_end(pid: u32) {
    wait_for("the end of a process", || match state_of(pid) {
        None | Some('Z' | 'X') => Some(()),
        Some(_) => None,
    });
}
