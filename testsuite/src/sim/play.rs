//! What each operation does to the world.

use super::world::{MAX_PROCESSES, World};
use super::{Content, Knob, Mood, Op, Process};
use ksm_engine::page::{DomainId, NumaNode, PageRun};
use std::time::Duration;

/// First page of every process: shortly before a border of the tables that items are kept in.
const FIRST_PAGE: u64 = 244;
const PAGES: u64 = 24;
/// Shorter than what the engine gives an agent to answer.
const SOON: Duration = Duration::from_secs(1);
pub(super) const DOMAINS: u32 = 2;
/// Contents that processes write: few, so that pages are equal all the time.
pub(super) const CONTENTS: u8 = 10;

fn page(page: u8) -> u64 {
    FIRST_PAGE + u64::from(page) % PAGES
}

fn run(start: u8, len: u8) -> PageRun {
    let start = page(start);
    PageRun::between(start, (start + u64::from(len)).min(FIRST_PAGE + PAGES))
}

/// Writes all pages, four of each content.
fn stir(process: &mut Process, first: u8) {
    for offset in 0..PAGES {
        let content = (u64::from(first) + offset / 4) % u64::from(CONTENTS);
        process.write(FIRST_PAGE + offset, Content(content));
    }
}

impl World {
    /// Does `op`. Does nothing if there is nothing to do it to.
    pub fn play(&mut self, op: &Op) {
        match *op {
            Op::Spawn { domain, content } => {
                if self.processes.len() < MAX_PROCESSES {
                    self.start(DomainId(u32::from(domain) % DOMAINS), content);
                }
            }
            Op::Settle => self.settle(),
            Op::SetKnob(knob) => self.set(knob),
            Op::Wait { millis } => self.wait(Duration::from_millis(millis.into())),
            Op::WaitUntilWoken => {
                let until = self.engine.wake_at();
                let time = until.map(|until| until.saturating_sub(self.now));
                if let Some(time) = time.filter(|time| *time < SOON) {
                    self.wait(time);
                }
            }
            Op::StoreFails { times } => self.arenas.borrow_mut().refusals = times.into(),
            Op::DaemonDies => self.kill_daemon(),
            Op::Fork { process }
            | Op::Exit { process }
            | Op::Connect { process }
            | Op::Disconnect { process, .. }
            | Op::Write { process, .. }
            | Op::Rewrite { process, .. }
            | Op::Fill { process, .. }
            | Op::Stir { process, .. }
            | Op::Read { process, .. }
            | Op::Discard { process, .. }
            | Op::Unmap { process, .. }
            | Op::Move { process, .. }
            | Op::Register { process, .. }
            | Op::Unregister { process, .. }
            | Op::Pin { process, .. }
            | Op::Unpin { process }
            | Op::Migrate { process, .. }
            | Op::Obey { process }
            | Op::ObeyInPart { process, .. }
            | Op::Lie { process, .. }
            | Op::Hear { process } => {
                if let Some(at) = self.pick(process, op) {
                    self.play_in(at, op);
                }
            }
        }
    }

    fn start(&mut self, domain: DomainId, content: u8) {
        let at = self.spawn(domain);
        let process = &mut self.processes[at];
        stir(process, content);
        process.register(PageRun {
            start: FIRST_PAGE,
            len: PAGES,
        });
        self.connect(at);
    }

    /// The process that `op` is for: the next one, counted from `number`, that it means anything to.
    fn pick(&self, number: u8, op: &Op) -> Option<usize> {
        let count = self.processes.len();
        let fits = |at: &usize| {
            let connection = self.processes[*at].connection.as_ref();
            match op {
                Op::Obey { .. } | Op::ObeyInPart { .. } | Op::Lie { .. } => {
                    connection.is_some_and(|connection| !connection.orders.is_empty())
                }
                Op::Hear { .. } => {
                    connection.is_some_and(|connection| !connection.messages.is_empty())
                }
                Op::Connect { .. } => connection.is_none(),
                _ => true,
            }
        };
        let first = usize::from(number);
        (first..first + count).map(|at| at % count).find(fits)
    }

    fn play_in(&mut self, at: usize, op: &Op) {
        let arenas = self.arenas.clone();
        let process = &mut self.processes[at];
        match *op {
            Op::Fork { .. } => {
                if self.processes.len() < MAX_PROCESSES {
                    self.fork(at);
                }
            }
            Op::Exit { .. } => self.exit(at),
            Op::Connect { .. } => self.connect(at),
            Op::Disconnect { delivered, .. } => {
                for _ in 0..delivered {
                    self.hear(at);
                }
                self.disconnect(at);
            }
            Op::Write {
                page: p, content, ..
            } => {
                process.write(page(p), Content(content.into()));
            }
            Op::Rewrite { page: p, .. } => {
                let content = process.shows(page(p), &arenas.borrow());
                process.write(page(p), content);
            }
            Op::Fill {
                page, len, content, ..
            } => {
                let run = run(page, len);
                for page in run.start..run.end() {
                    process.write(page, Content(content.into()));
                }
            }
            Op::Stir { content, .. } => stir(process, content),
            Op::Read { page: p, .. } => process.read(page(p)),
            Op::Discard { page, len, .. } => process.discard(run(page, len)),
            Op::Unmap { page, len, .. } => process.unmap(run(page, len)),
            Op::Move { page, len, .. } => self.move_about(at, run(page, len)),
            Op::Register { page, len, .. } => process.register(run(page, len)),
            Op::Unregister { page, len, .. } => {
                process.unregister(run(page, len), &arenas.borrow());
            }
            Op::Pin { page: p, .. } => process.pin(page(p), &arenas.borrow()),
            Op::Unpin { .. } => process.unpin(),
            Op::Migrate {
                page, len, node, ..
            } => {
                process.migrate(run(page, len), NumaNode(node.into()));
            }
            Op::Obey { .. } => self.obey(at, None),
            Op::ObeyInPart {
                willing, refusal, ..
            } => {
                process.mood = Mood {
                    willing: Some(willing.into()),
                    refusal: Some(refusal),
                };
                self.obey(at, None);
            }
            Op::Lie { lie, .. } => self.obey(at, Some(lie)),
            Op::Hear { .. } => self.hear(at),
            Op::Spawn { .. }
            | Op::Settle
            | Op::SetKnob(_)
            | Op::Wait { .. }
            | Op::WaitUntilWoken
            | Op::StoreFails { .. }
            | Op::DaemonDies => unreachable!("these are not done in one process"),
        }
    }

    /// Moves pages behind all others, or back.
    fn move_about(&mut self, at: usize, run: PageRun) {
        let process = &self.processes[at];
        let away = PageRun {
            start: run.start + PAGES,
            ..run
        };
        let free =
            |run: PageRun| !(run.start..run.end()).any(|page| process.pages.contains_key(&page));
        if free(away) {
            self.move_pages(at, run, away.start);
        } else if free(run) {
            self.move_pages(at, away, run.start);
        }
    }

    /// Ends everything that keeps pages from merging, and lets some scans pass.
    ///
    /// # Panics
    /// When the scanning does not go on.
    pub fn calm_down(&mut self) {
        // Processes whose agents have lied have to go: what the engine knows of them is wrong.
        while let Some(at) = self.processes.iter().position(|process| process.liar) {
            self.exit(at);
        }
        self.arenas.borrow_mut().refusals = 0;
        for at in 0..self.processes.len() {
            let process = &mut self.processes[at];
            process.pinned.clear();
            process.may_pin &= process.pid.is_multiple_of(2);
            // Some stay unknown to the daemon for good.
            if !process.pid.is_multiple_of(5) {
                self.connect(at);
            }
        }
        self.settle();
        // Nobody whose agents were late owes anything any more.
        self.wait(Duration::from_secs(120));
        for knob in [
            Knob::Advisor(false),
            Knob::SmartScan(false),
            Knob::PagesToScan(1000),
            Knob::SleepMillisecs(10),
            Knob::Run(1),
        ] {
            self.set(knob);
        }
        self.scan(6);
    }
}
