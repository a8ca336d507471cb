//! The engine, driven by any sequence of events: processes that come and go, regions, knobs, time, a store that fails, and
//! reports of every kind on every order. Its books are audited after each event.
//!
//! Most reports are such as an agent could give, whose pages hold a few contents; the others are whatever passes the
//! checks of the wire.

use super::agent::{CONTENTS, DOMAINS, Donated, Mm, SECRET, outcome};
use super::bytes::Bytes;
use super::store::Store;
use ksm_engine::engine::{Engine, Extras, Ticket, Written};
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{
    FRAME_SHARED, Order, OrderId, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, DomainId, MmId, PageRun, Slot};
use ksm_engine::wire::{MAX_MESSAGE, MessageBuffer, ToDaemon};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

const MOST_MMS: usize = 6;
/// Events after which an input has said enough.
const MOST_EVENTS: usize = 256;
/// Orders that are answered in one event.
const MOST_ANSWERS: usize = 64;

thread_local! {
    static BUFFER: RefCell<Box<MessageBuffer>> = RefCell::new(Box::new(MessageBuffer([0; MAX_MESSAGE])));
}

struct Scene {
    engine: Engine<Store>,
    store: Store,
    mms: Vec<Mm>,
    orders: Vec<(MmId, OrderId, Order)>,
    pending: HashSet<Ticket>,
    last_order: Option<OrderId>,
    now: Duration,
}

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.byte();
    let store = Store::new(2 + u32::from(how & 7));
    let mut scene = Scene {
        engine: Engine::new(store.clone(), SECRET),
        store,
        mms: Vec::new(),
        orders: Vec::new(),
        pending: HashSet::new(),
        last_order: None,
        now: Duration::ZERO,
    };
    scene.engine.set_extras(Extras {
        refile_percent: if how & 8 == 0 { 0 } else { 40 },
        meet_phases: how & 16 != 0,
        huge_pages_as_ksmd: false,
        dry_run: false,
    });
    let _ = scene.engine.write(KsmFile::Run, b"1");
    let _ = scene
        .engine
        .write(KsmFile::SmartScan, if how & 32 == 0 { b"0" } else { b"1" });
    for _ in 0..MOST_EVENTS {
        if bytes.is_empty() {
            break;
        }
        scene.event(&mut bytes);
        scene.pass_on();
        if let Err(problem) = scene.engine.audit() {
            panic!("the engine's books are wrong: {problem}");
        }
    }
    scene.finish();
}

fn small_run(bytes: &mut Bytes<'_>) -> PageRun {
    let (start, len) = (bytes.byte(), bytes.byte());
    match len {
        0xff => PageRun {
            start: u64::from(start) << 12,
            len: 1 << 22,
        },
        _ => PageRun {
            start: u64::from(start % 64),
            len: 1 + u64::from(len % 24),
        },
    }
}

impl Scene {
    fn event(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 16 {
            0 | 1 => self.add(bytes),
            2 => {
                if !self.mms.is_empty() {
                    let gone = bytes.below(self.mms.len());
                    self.remove(gone);
                }
            }
            3 => {
                if let Some(mm) = self.any_mm(bytes) {
                    self.engine.register(mm, small_run(bytes));
                }
            }
            4 => {
                if let Some(mm) = self.any_mm(bytes) {
                    self.engine.unregister(mm, small_run(bytes));
                }
            }
            5..9 => {
                let at = bytes.below(self.orders.len());
                self.answer(at, bytes);
            }
            9 => self.lie(bytes),
            10 => self.knob(bytes),
            11 => {
                let millis = bytes.byte();
                let scale = if millis & 1 == 0 { 1 } else { 100 };
                self.advance(Duration::from_millis(u64::from(millis >> 1) * scale));
            }
            12 => self.wake(),
            13 => self.store.arenas.borrow_mut().failures = bytes.byte() % 4,
            14 => {
                if let Written::Pending(ticket) = self.engine.count_zero_pages(|_| true) {
                    self.pending.insert(ticket);
                }
            }
            _ => {
                for _ in 0..MOST_ANSWERS {
                    if self.orders.is_empty() {
                        self.wake();
                        break;
                    }
                    self.answer(0, bytes);
                    self.pass_on();
                }
            }
        }
    }

    fn any_mm(&self, bytes: &mut Bytes<'_>) -> Option<MmId> {
        let at = bytes.below(self.mms.len());
        self.mms.get(at).map(|mm| mm.id)
    }

    fn add(&mut self, bytes: &mut Bytes<'_>) {
        if self.mms.len() == MOST_MMS {
            return;
        }
        let how = bytes.byte();
        let domain = DomainId(u32::from(how) % DOMAINS);
        let parent = self.any_mm(bytes).filter(|_| how & 2 != 0);
        let id = match parent {
            Some(parent) => self.engine.add_child(domain, parent),
            None => self.engine.add_mm(domain),
        };
        let id = id.expect("there are few");
        assert!(self.mms.iter().all(|mm| mm.id != id), "{id:?} is another's");
        self.mms.push(Mm {
            id,
            domain,
            told: HashMap::new(),
            mapped: HashMap::new(),
        });
        if how & 4 == 0 {
            let run = PageRun {
                start: 0,
                len: 1 + u64::from(how >> 3),
            };
            self.engine.register(id, run);
        }
    }

    fn remove(&mut self, at: usize) {
        let gone = self.mms.remove(at);
        self.orders.retain(|(mm, ..)| *mm != gone.id);
        self.engine.remove_mm(gone.id);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.engine.advance(self.now);
    }

    fn wake(&mut self) {
        if let Some(at) = self.engine.wake_at() {
            self.advance(at.saturating_sub(self.now).min(Duration::from_secs(10)));
        }
    }

    /// Takes what the engine says, and checks it.
    fn pass_on(&mut self) {
        while let Some((mm, id, order)) = self.engine.take_order() {
            assert!(self.last_order < Some(id), "{id:?} does not rise");
            self.last_order = Some(id);
            let to = self.mms.iter().find(|known| known.id == mm);
            let to = to.expect("orders are for processes that are there");
            if let Order::Map { arena, runs } | Order::Remap { arena, runs } = &order {
                let arenas = self.store.arenas.borrow();
                for index in runs.iter().flat_map(|run| run.slot..run.slot + run.len) {
                    arenas.content(
                        Slot {
                            arena: *arena,
                            index,
                        },
                        to.domain,
                    );
                }
            }
            self.orders.push((mm, id, order));
        }
        while let Some((ticket, _)) = self.engine.take_finished() {
            assert!(self.pending.remove(&ticket), "{ticket:?} is finished twice");
        }
    }

    fn knob(&mut self, bytes: &mut Bytes<'_>) {
        const KNOBS: [(KsmFile, &str); 24] = [
            (KsmFile::Run, "1"),
            (KsmFile::Run, "0"),
            (KsmFile::Run, "2"),
            (KsmFile::PagesToScan, "1"),
            (KsmFile::PagesToScan, "7"),
            (KsmFile::PagesToScan, "1000"),
            (KsmFile::PagesToScan, "4294967295"),
            (KsmFile::PagesToScan, "0"),
            (KsmFile::SleepMillisecs, "0"),
            (KsmFile::SleepMillisecs, "20"),
            (KsmFile::SleepMillisecs, "4294967295"),
            (KsmFile::MaxPageSharing, "2"),
            (KsmFile::MaxPageSharing, "3"),
            (KsmFile::MaxPageSharing, "256"),
            (KsmFile::MergeAcrossNodes, "0"),
            (KsmFile::MergeAcrossNodes, "1"),
            (KsmFile::UseZeroPages, "1"),
            (KsmFile::UseZeroPages, "0"),
            (KsmFile::SmartScan, "1"),
            (KsmFile::SmartScan, "0"),
            (KsmFile::PruneMillisecs, "0"),
            (KsmFile::AdvisorMode, "scan-time"),
            (KsmFile::AdvisorMode, "none"),
            (KsmFile::AdvisorMaxPagesToScan, "18446744073709551615"),
        ];
        let (file, text) = KNOBS[bytes.below(KNOBS.len())];
        if let Ok(Written::Pending(ticket)) = self.engine.write(file, text.as_bytes()) {
            self.pending.insert(ticket);
        }
    }

    /// Answers an order as an agent could.
    fn answer(&mut self, at: usize, bytes: &mut Bytes<'_>) {
        if at >= self.orders.len() {
            return;
        }
        let (mm, id, order) = self.orders.remove(at);
        let place = self.mms.iter().position(|known| known.id == mm);
        let known = &mut self.mms[place.expect("orders of the dead are thrown away")];
        let mut donated = Donated(Vec::new());
        let (mut runs, mut digests, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
        let zero_pages = u64::from(bytes.byte() & 3);
        let report = match &order {
            Order::Visit {
                range,
                limit,
                nodes,
                ..
            } => {
                let end = known.visit(*range, *limit, *nodes, bytes, &mut runs, &mut digests);
                ReportRef::Visited {
                    end,
                    zero_pages,
                    runs: &runs,
                    digests: &digests,
                }
            }
            Order::Unmerge { range } => ReportRef::Unmerged {
                end: range.end() - range.len.min(zero_pages.saturating_sub(1)),
            },
            Order::Count => ReportRef::Counted { zero_pages },
            Order::Donate { runs } | Order::Zero { runs } | Order::Split { runs } => {
                for page in runs.iter().flat_map(|run| run.start..run.end()) {
                    let lie = bytes.byte();
                    let told = known.told.get(&page).copied().unwrap_or(0);
                    donated.0.push(if lie & 0xf0 == 0xf0 {
                        usize::from(lie & 7)
                    } else {
                        told
                    });
                    outcomes.push(outcome(page, lie));
                }
                ReportRef::Done {
                    outcomes: &outcomes,
                }
            }
            Order::Map { arena, runs } | Order::Remap { arena, runs } => {
                for run in runs {
                    for (page, index) in (run.start..run.pages().end()).zip(run.slot..) {
                        let done = outcome(page, bytes.byte());
                        if done.outcome == 0 {
                            known.mapped.insert(
                                page,
                                Slot {
                                    arena: *arena,
                                    index,
                                },
                            );
                        }
                        outcomes.push(done);
                    }
                }
                ReportRef::Done {
                    outcomes: &outcomes,
                }
            }
        };
        let taken = self.engine.report(mm, id, &report, &donated);
        taken.unwrap_or_else(|error| panic!("{report:?} on {order:?}: {error}"));
    }

    /// Answers an order, given or not, with whatever the wire lets through. Who is not believed is cut off.
    fn lie(&mut self, bytes: &mut Bytes<'_>) {
        let Some(mm) = self.any_mm(bytes) else { return };
        let at = bytes.below(self.orders.len() + 1);
        let id = match self.orders.get(at) {
            Some((_, id, _)) => *id,
            None => OrderId(bytes.telling()),
        };
        let kind = bytes.byte();
        let count = bytes.below(6);
        let (mut runs, mut digests, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (start, len) = (bytes.telling(), u32::from(bytes.byte()));
            let shared = if bytes.bit() { FRAME_SHARED } else { 0 };
            let state = u32::from(bytes.byte() % 16) | shared;
            let slot = Slot {
                arena: ArenaId(bytes.byte().into()),
                index: bytes.byte().into(),
            };
            runs.push(VisitRun {
                start,
                len,
                state,
                slot,
            });
            outcomes.push(OutcomeRun {
                start,
                len,
                outcome: state & 15,
            });
            if runs.last().and_then(VisitRun::found) == Some(VisitState::Calm) {
                let digest = Digest([slot.index.to_le_bytes()[0]; 16]);
                digests.extend(std::iter::repeat_n(digest, len as usize));
            }
        }
        let report = match kind % 4 {
            0 => ReportRef::Visited {
                end: bytes.telling(),
                zero_pages: bytes.telling(),
                runs: &runs,
                digests: &digests,
            },
            1 => ReportRef::Done {
                outcomes: &outcomes,
            },
            2 => ReportRef::Unmerged {
                end: bytes.telling(),
            },
            _ => ReportRef::Counted {
                zero_pages: bytes.telling(),
            },
        };
        let donated = Donated(
            runs.iter()
                .map(|run| run.slot.index as usize % CONTENTS)
                .collect(),
        );
        let message = ToDaemon::Report { order: id, report };
        let believed = BUFFER.with_borrow_mut(|buffer| {
            let len = message.encode(buffer).expect("it is short");
            let Ok(ToDaemon::Report { order, report }) = ToDaemon::decode(&buffer.0[..len]) else {
                return Err(());
            };
            let taken = self.engine.report(mm, order, &report, &donated);
            taken.map_err(|_| ())
        });
        match (believed, self.mms.iter().position(|known| known.id == mm)) {
            (Ok(()), _) => self.orders.retain(|(of, sent, _)| (*of, *sent) != (mm, id)),
            (Err(()), Some(at)) => self.remove(at),
            (Err(()), None) => {}
        }
    }

    /// Everybody leaves: then nothing is kept, and everybody who waits has been answered.
    fn finish(&mut self) {
        while !self.mms.is_empty() {
            self.remove(0);
            self.pass_on();
        }
        for _ in 0..100 {
            if self.pending.is_empty() && self.engine.counters().rmap_items == 0 {
                return;
            }
            // With `run` at 0 items of the dead stay until somebody scans.
            if self.pending.is_empty()
                && let Ok(Written::Pending(ticket)) = self.engine.write(KsmFile::Run, b"1")
            {
                self.pending.insert(ticket);
            }
            for (file, text) in [
                (KsmFile::AdvisorMode, "none"),
                (KsmFile::PagesToScan, "100"),
                (KsmFile::SleepMillisecs, "20"),
            ] {
                let written = self.engine.write(file, text.as_bytes());
                assert_eq!(written, Ok(Written::Done), "{file}");
            }
            self.wake();
            self.pass_on();
            self.engine.audit().expect("the books are right");
        }
        panic!(
            "{:?} wait, {} items are left",
            self.pending,
            self.engine.counters().rmap_items
        );
    }
}
