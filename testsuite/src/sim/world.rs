//! The host: one daemon's engine, the processes, and the connections between them.

use super::agent::Surroundings;
use super::arenas::{Arenas, Key, ModelStore};
use super::content::Digests;
use super::process::{Connection, Message, Process};
use super::{Content, Knob, Lie, Mood, Page, Sights};
use ksm_engine::engine::{Engine, Extras, Ticket, Written};
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::order::{Donation, Order, OrderId, Outcome};
use ksm_engine::page::{DomainId, PageBytes, PageRun, UserId};
use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// The most processes at one time.
pub(super) const MAX_PROCESSES: usize = 5;
/// How long the engine waits for an answer.
const ORDER_PATIENCE: Duration = Duration::from_secs(5);
/// Deliveries after which a world that does not settle is stuck.
const PATIENCE: u32 = 100_000;

/// A host.
#[derive(Debug)]
pub struct World {
    pub(super) engine: Engine<ModelStore>,
    pub(super) arenas: Rc<RefCell<Arenas>>,
    /// Number of the daemon that lives now.
    pub(super) daemon: u32,
    pub(super) now: Duration,
    pub(super) processes: Vec<Process>,
    digests: Digests,
    forked_or_spawned: u32,
    /// Families that the daemon was told of.
    families: u64,
    pub(super) slots_per_arena: u32,
    extras: Extras,
    pub(super) sights: Sights,
    /// Orders and answers are printed.
    traced: bool,
    /// Writes that the engine has not answered yet.
    pending: HashSet<Ticket>,
}

/// The donation buffer, which the agent may write to at any time.
struct Buffer(Rc<RefCell<Vec<Content>>>);

impl Donation for Buffer {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        let contents = self.0.borrow();
        for (index, page) in (first..).zip(into) {
            let content = contents.get(index).copied();
            *page = content.unwrap_or(Content::ZERO).bytes();
        }
    }
}

impl World {
    /// A host without processes, whose daemon has the kernel's defaults and arenas of so many slots.
    #[must_use]
    pub fn new(slots_per_arena: u32) -> Self {
        let arenas: Rc<RefCell<Arenas>> = Rc::default();
        Self {
            engine: start_daemon(1, slots_per_arena, &arenas),
            arenas,
            daemon: 1,
            now: Duration::ZERO,
            processes: Vec::new(),
            digests: Digests::default(),
            forked_or_spawned: 0,
            families: 0,
            slots_per_arena,
            extras: Extras::default(),
            sights: Sights::default(),
            traced: false,
            pending: HashSet::new(),
        }
    }

    /// The engine of the daemon that lives now. Whoever drives it past the world has to call [`World::pass_on`].
    pub fn engine(&mut self) -> &mut Engine<impl ksm_engine::store::SlotStore + use<>> {
        &mut self.engine
    }

    /// Turns on what the kernel's KSM does not do, in this daemon and in those after it.
    pub fn set_extras(&mut self, extras: Extras) {
        self.extras = extras;
        self.engine.set_extras(extras);
    }

    /// Prints orders and answers from now on.
    pub fn trace(&mut self) {
        self.traced = true;
    }

    /// A process, by its place in the list of those that live.
    pub fn process(&mut self, at: usize) -> &mut Process {
        &mut self.processes[at]
    }

    /// Starts a process; returns its place.
    pub fn spawn(&mut self, domain: DomainId) -> usize {
        self.forked_or_spawned += 1;
        self.processes
            .push(Process::new(self.forked_or_spawned, domain));
        self.processes.len() - 1
    }

    /// Forks a process; returns the child's place.
    pub fn fork(&mut self, parent: usize) -> usize {
        self.forked_or_spawned += 1;
        let child = self.processes[parent].fork(self.forked_or_spawned);
        self.processes.push(child);
        self.processes.len() - 1
    }

    /// Ends a process. Those behind it move up.
    pub fn exit(&mut self, at: usize) {
        self.disconnect(at);
        self.processes.remove(at);
    }

    /// Connects the agent of a process and registers what is mergeable in it.
    ///
    /// # Panics
    /// When the engine takes no more processes.
    pub fn connect(&mut self, at: usize) {
        let parent = self.processes[at].parent.and_then(|pid| self.find(pid));
        let parent = parent.and_then(|parent| self.processes[parent].connection.as_ref());
        let parent = parent.map(|connection| (connection.mm, connection.family));
        let process = &mut self.processes[at];
        if process.connection.is_some() {
            return;
        }
        self.families += 1;
        let (mm, family) = match parent {
            Some((mm, family)) => (self.engine.add_child(process.domain, mm), family),
            None => (self.engine.add_mm(process.domain), self.families),
        };
        process.connection = Some(Connection {
            mm: mm.expect("a small world never has too many processes"),
            family,
            orders: VecDeque::new(),
            messages: VecDeque::new(),
        });
        process.liar = false;
        process.late = false;
        let holds = process.holds();
        if !holds.is_empty() {
            process.tell(Message::Holds(holds));
        }
        for run in process.mergeable_runs() {
            process.tell(Message::Register(run));
        }
        self.pass_on();
    }

    /// Cuts a connection. What is on its way in it is lost.
    pub fn disconnect(&mut self, at: usize) {
        if let Some(connection) = self.processes[at].connection.take() {
            self.engine.remove_mm(connection.mm);
            self.close_domain(self.processes[at].domain);
        }
        self.be_cut_off(at);
        self.pass_on();
    }

    /// One domain in two ends with its last process, as those that are not simply a user do.
    fn close_domain(&mut self, domain: DomainId) {
        let mut connected = self.processes.iter().filter(|p| p.connection.is_some());
        if domain.0 % 2 == 1 && !connected.any(|process| process.domain == domain) {
            self.engine.close_domain(domain);
        }
    }

    fn be_cut_off(&mut self, at: usize) {
        let process = &mut self.processes[at];
        process.connection = None;
        for seen in process.seen.values_mut() {
            seen.known = false;
        }
        process.said.clear();
        process.names.clear();
        process.asked.clear();
        let merged =
            |(page, what): (&u64, &Page)| matches!(what, Page::Merged { .. }).then_some(*page);
        process
            .inherited
            .extend(process.pages.iter().filter_map(merged));
    }

    /// The agent of a process dies, and another one takes its place: with the memory, and without descriptors.
    pub fn kill_agent(&mut self, at: usize) {
        self.disconnect(at);
        self.processes[at].kept.clear();
    }

    /// An agent has said what is mapped in its process.
    fn note_held(&mut self, at: usize, holds: &[(Key, bool)]) {
        let domain = self.processes[at].domain;
        for (key, has_descriptor) in holds {
            let known = self.arenas.borrow().name(self.daemon, *key);
            if let Some(name) = known {
                self.processes[at].learn(*key, name);
                self.engine.expect_sharers(domain, name);
                continue;
            }
            self.processes[at].asked.insert(*key);
            if !has_descriptor {
                continue;
            }
            let (numa, of) = {
                let arenas = self.arenas.borrow();
                let arena = arenas.arena_at(*key);
                (arena.numa, arena.domain)
            };
            assert_eq!(of, domain, "{key:?} is mapped in another domain");
            let slots = self.slots_per_arena;
            let keep = |store: &mut ModelStore, name| store.adopt(name, *key);
            let adopted = self.engine.adopt_arena(domain, numa, slots, keep);
            let name = adopted.expect("a small world has few arenas");
            for process in &mut self.processes {
                if process.domain == domain && process.asked.contains(key) {
                    process.learn(*key, name);
                }
            }
        }
    }

    /// Place of the process with this number.
    #[must_use]
    pub fn find(&self, pid: u32) -> Option<usize> {
        self.processes.iter().position(|process| process.pid == pid)
    }

    /// `madvise(UNMERGEABLE)` in a process.
    pub fn unregister(&mut self, at: usize, run: PageRun) {
        self.processes[at].unregister(run, &self.arenas.borrow());
    }

    /// `mremap` in a process, to a place where nothing is.
    pub fn move_pages(&mut self, at: usize, run: PageRun, to: u64) {
        self.processes[at].move_pages(run, to, &self.arenas.borrow());
    }

    /// A device gets hold of a page of a process.
    pub fn pin(&mut self, at: usize, page: u64) {
        self.processes[at].pin(page, &self.arenas.borrow());
    }

    /// Kills the daemon and starts another one.
    pub fn kill_daemon(&mut self) {
        self.daemon += 1;
        self.engine = start_daemon(self.daemon, self.slots_per_arena, &self.arenas);
        self.engine.set_extras(self.extras);
        self.pending.clear();
        for at in 0..self.processes.len() {
            self.be_cut_off(at);
        }
        self.engine.advance(self.now);
        self.set(Knob::Run(1));
    }

    /// The order that the agent of a process carries out next.
    #[must_use]
    pub fn next_order(&self, at: usize) -> Option<&Order> {
        let connection = self.processes[at].connection.as_ref()?;
        connection.orders.front().map(|(_, order, _)| order)
    }

    /// The agent carries out its next order, and perhaps lies about it.
    pub fn obey(&mut self, at: usize, lie: Option<Lie>) {
        let process = &mut self.processes[at];
        let order = process
            .connection
            .as_mut()
            .and_then(|connection| connection.orders.pop_front());
        let Some((id, order, given)) = order else {
            return;
        };
        process.liar |= lie.is_some();
        if self.traced {
            eprintln!("  process {} is told to {order:?}", process.pid);
        }
        if lie == Some(Lie::Idle) {
            process.mood = Mood {
                willing: Some(0),
                refusal: Some(Outcome::Done),
            };
        }
        let arenas = self.arenas.borrow();
        let mut around = Surroundings {
            daemon: self.daemon,
            salt: self.engine.salt(process.domain),
            arenas: &arenas,
            digests: &mut self.digests,
        };
        let answer = process.obey(&order, &mut around);
        if lie.is_none() {
            self.sights.obeyed(&order, &answer);
        }
        drop(arenas);
        let answer = match lie {
            Some(lie) => lie.bend(process, answer),
            None => answer,
        };
        if let Some(Lie::Invented(number)) = lie {
            let invented = OrderId(number.into());
            self.processes[at].tell(Message::Report(invented, answer.clone(), given));
        }
        if self.traced {
            eprintln!("  process {}: {answer:?}", self.processes[at].pid);
        }
        self.processes[at].tell(Message::Report(id, answer, given));
    }

    /// The daemon gets the next message of an agent. It hangs up on a liar.
    ///
    /// # Panics
    /// When the engine does not believe an honest agent.
    pub fn hear(&mut self, at: usize) {
        let process = &mut self.processes[at];
        let Some(connection) = &mut process.connection else {
            return;
        };
        let mm = connection.mm;
        let believed = match connection.messages.pop_front() {
            None => return,
            Some(Message::Holds(holds)) => {
                self.note_held(at, &holds);
                Ok(())
            }
            Some(Message::Register(run)) => {
                self.engine.register(mm, run);
                Ok(())
            }
            Some(Message::Unregister(run)) => {
                self.engine.unregister(mm, run);
                Ok(())
            }
            Some(Message::Report(id, answer, _)) => {
                let buffer = Buffer(process.donation.clone());
                self.engine.report(mm, id, &answer.borrow(), &buffer)
            }
        };
        if let Err(error) = believed {
            let process = &self.processes[at];
            assert!(
                process.liar,
                "the engine does not believe process {}: {error}",
                process.pid
            );
            self.sights.cut_off += 1;
            self.disconnect(at);
        }
        self.pass_on();
    }

    /// Hands the engine's orders to the agents, and its answers to those who wrote knobs.
    ///
    /// # Panics
    /// When there is nobody to hand them to.
    pub fn pass_on(&mut self) {
        while let Some((mm, id, order)) = self.engine.take_order() {
            let connections = self
                .processes
                .iter_mut()
                .filter_map(|p| p.connection.as_mut());
            let to = connections.into_iter().find(|c| c.mm == mm);
            to.unwrap_or_else(|| panic!("{order:?} for {mm:?}, which is gone"))
                .orders
                .push_back((id, order, self.now));
        }
        for key in self.arenas.borrow_mut().take_let_go() {
            for process in &mut self.processes {
                process.names.remove(&key);
            }
        }
        while let Some((ticket, _)) = self.engine.take_finished() {
            assert!(self.pending.remove(&ticket), "{ticket:?} is finished twice");
        }
    }

    /// Writes a knob, as root's shell would.
    pub fn set(&mut self, knob: Knob) {
        let (file, value) = knob.written();
        // A refusal is as good an answer as any.
        let _refused = self.write(file, &value);
    }

    /// Writes a file. A write that has to wait is waited for by nobody.
    ///
    /// # Errors
    /// As the engine answers.
    pub fn write(&mut self, file: KsmFile, value: &str) -> Result<Written, WriteError> {
        let written = self.engine.write(file, value.as_bytes());
        if let Ok(Written::Pending(ticket)) = written {
            self.pending.insert(ticket);
        }
        self.pass_on();
        written
    }

    /// Has zero pages counted, as a daemon does before somebody reads how many there are.
    pub fn count_zero_pages(&mut self) {
        if let Written::Pending(ticket) = self.engine.count_zero_pages(|_| true) {
            self.pending.insert(ticket);
        }
        self.pass_on();
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
        for process in &mut self.processes {
            process.late |= process
                .oldest_order()
                .is_some_and(|given| self.now >= given + ORDER_PATIENCE);
        }
        self.engine.advance(self.now);
        for process in &mut self.processes {
            // What was asked of those whom nobody waits for any more counts as lost.
            let waited_for = self.engine.has_patience_with(UserId(process.domain.0));
            process.late |= !waited_for && process.oldest_order().is_some();
        }
        self.pass_on();
    }

    /// Lets all agents carry out all orders, and the daemon hear all of it.
    ///
    /// # Panics
    /// When that has no end.
    pub fn settle(&mut self) {
        for _ in 0..PATIENCE {
            let mut idle = true;
            for at in 0..self.processes.len() {
                let Some(connection) = &self.processes[at].connection else {
                    continue;
                };
                let (orders, messages) = (connection.orders.len(), connection.messages.len());
                idle &= orders == 0 && messages == 0;
                (0..orders).for_each(|_| self.obey(at, None));
                (0..messages + orders).for_each(|_| self.hear(at));
            }
            if idle {
                return;
            }
        }
        panic!("the engine orders without end");
    }

    /// Lets `count` full scans pass.
    ///
    /// # Panics
    /// When the scanning does not go on.
    pub fn scan(&mut self, count: u64) {
        self.settle();
        let target = self.engine.counters().full_scans + count;
        for _ in 0..PATIENCE {
            if self.engine.counters().full_scans >= target || self.nothing_to_scan() {
                assert!(
                    self.pending.is_empty(),
                    "these writes were never answered: {:?}",
                    self.pending
                );
                return;
            }
            let wake_at = self.engine.wake_at();
            let wake_at = wake_at.expect("nothing is under way, and nobody will wake the engine");
            self.wait(wake_at.saturating_sub(self.now));
            self.settle();
        }
        panic!("the scan does not end");
    }

    pub(super) fn nothing_to_scan(&self) -> bool {
        let scanned = |p: &Process| p.connection.is_some() && !p.mergeable.is_empty();
        self.engine.wake_at().is_none() && !self.processes.iter().any(scanned)
    }
}

fn start_daemon(
    daemon: u32,
    slots_per_arena: u32,
    arenas: &Rc<RefCell<Arenas>>,
) -> Engine<ModelStore> {
    let store = ModelStore {
        daemon,
        slots_per_arena,
        arenas: arenas.clone(),
    };
    let mut secret = [0; 32];
    secret[..4].copy_from_slice(&daemon.to_le_bytes());
    Engine::new(store, secret)
}
