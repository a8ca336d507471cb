//! Messages with bytes that were changed, lost or added: decoding never panics, on either side, and what it takes for
//! a message can be encoded again.
//!
//! Ten millions of each direction, the same ones every time.

use ksm_engine::digest::Salt;
use ksm_engine::knobs::KsmFile;
use ksm_engine::order::{
    MapRun, OrderId, OrderRef, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, PageRun, Slot};
use ksm_engine::wire::{
    Birth, Figures, HeldArena, Hello, Label, MAX_MESSAGE, MessageBuffer, MountDevice, NamedArena,
    ProcessFigures, RefusalReason, ToAgent, ToDaemon, Versions,
};

const CASES: u64 = 10_000_000;
const RANGE: PageRun = PageRun { start: 7, len: 9 };
const SLOT: Slot = Slot {
    arena: ArenaId(3),
    index: 5,
};

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("below a usize")
    }

    /// Numbers that mean something, more often than chance has it.
    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
        match self.below(2) {
            0 => TELLING[self.below(TELLING.len())],
            _ => self.below(256).to_le_bytes()[0],
        }
    }

    fn damage(&mut self, message: &[u8], buffer: &mut MessageBuffer) -> usize {
        buffer.0[..message.len()].copy_from_slice(message);
        let mut len = message.len();
        for _ in 0..=self.below(4) {
            match self.below(8) {
                0 => len = self.below(len + 1),
                1 => len = (len + self.below(64)).min(MAX_MESSAGE),
                _ if len == 0 => {}
                // The counts and scalars more often than the rest.
                2..5 => buffer.0[self.below(len.min(56))] = self.byte(),
                _ => buffer.0[self.below(len)] = self.byte(),
            }
        }
        len
    }
}

fn buffer() -> Box<MessageBuffer> {
    Box::new(MessageBuffer([0; MAX_MESSAGE]))
}

/// Damages each message many times; how many were taken for messages, and how many were not.
fn damage_all(messages: &[Vec<u8>], mut is_taken: impl FnMut(&[u8]) -> bool) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut damaged = buffer();
    let (mut taken, mut refused) = (0_u64, 0_u64);
    for _ in 0..CASES {
        let message = &messages[dice.below(messages.len())];
        let len = dice.damage(message, &mut damaged);
        if is_taken(&damaged.0[..len]) {
            taken += 1;
        } else {
            refused += 1;
        }
    }
    // Else the damage would be too small, or too great, to say anything.
    assert!(
        taken > CASES / 100 && refused > CASES / 100,
        "{taken} taken, {refused} refused"
    );
}

fn map_runs() -> [MapRun; 3] {
    [0, 1, 2].map(|i| MapRun {
        start: 10 + i * 10,
        len: 4,
        slot: 8,
    })
}

#[test]
fn the_daemon_survives_damaged_messages() {
    let mut encoded = buffer();
    let runs = [
        VisitState::Calm,
        VisitState::Merged,
        VisitState::Skipped,
        VisitState::Unchanged,
    ]
    .map(|state| VisitRun {
        start: 10 * u64::from(state as u32),
        len: 2,
        state: state as u32,
        slot: SLOT,
    });
    let digests = [Digest([1; 16]); 2];
    let outcomes = [Outcome::Done, Outcome::Pinned].map(|outcome| OutcomeRun {
        start: 10,
        len: 5,
        outcome: outcome as u32,
    });
    let report = |report| ToDaemon::Report {
        order: OrderId(4),
        report,
    };
    let hello = Hello {
        pid: 17,
        parent: 16,
        birth: Birth {
            ledger: 1,
            number: 2,
        },
        versions: Versions::only(7),
        label: Label::new("web-1").unwrap(),
    };
    let messages = [
        ToDaemon::Hello(hello),
        ToDaemon::Query,
        ToDaemon::Locate,
        ToDaemon::AllSaid,
        ToDaemon::Processes,
        ToDaemon::Scan,
        ToDaemon::Holds {
            arenas: &[HeldArena::default(); 3],
        },
        ToDaemon::Register { range: RANGE },
        ToDaemon::Unregister { range: RANGE },
        report(ReportRef::Visited {
            end: 100,
            zero_pages: 3,
            runs: &runs,
            digests: &digests,
        }),
        report(ReportRef::Done {
            outcomes: &outcomes,
        }),
        report(ReportRef::Unmerged { end: 8 }),
        report(ReportRef::Counted { zero_pages: 8 }),
    ]
    .map(|message| {
        let len = message.encode(&mut encoded).expect("it fits");
        encoded.0[..len].to_vec()
    });
    damage_all(&messages, |bytes| match ToDaemon::decode(bytes) {
        Ok(message) => message.encode(&mut encoded).is_ok(),
        Err(_) => false,
    });
}

#[test]
fn an_agent_survives_damaged_messages() {
    let mut encoded = buffer();
    let (map, runs) = (map_runs(), map_runs().map(|run| run.pages()));
    let arena = ArenaId(3);
    let order = |order| ToAgent::Order {
        id: OrderId(4),
        order,
    };
    let messages = [
        ToAgent::Welcome {
            salt: Salt([7; 32]),
        },
        ToAgent::Refused(RefusalReason::TooMany),
        ToAgent::Figures(Figures::default()),
        ToAgent::Mount(MountDevice {
            major: 0,
            minor: 9,
            asker: 7,
        }),
        ToAgent::Named {
            names: &[NamedArena { tag: 1, arena }; 2],
        },
        ToAgent::Keep { arena },
        ToAgent::LetGo {
            arenas: &[arena; 3],
        },
        ToAgent::Processes {
            list: &[ProcessFigures::default(); 2],
        },
        ToAgent::Scanned { full_scans: 4 },
        order(OrderRef::Visit {
            range: RANGE,
            limit: 5,
            skip: &runs,
            nodes: true,
            brief: true,
        }),
        order(OrderRef::Donate { runs: &runs }),
        order(OrderRef::Map { arena, runs: &map }),
        order(OrderRef::Remap { arena, runs: &map }),
        order(OrderRef::Zero { runs: &runs }),
        order(OrderRef::Split { runs: &runs }),
        order(OrderRef::Unmerge { range: RANGE }),
        order(OrderRef::Count),
    ]
    .map(|message| {
        let len = message.encode(&mut encoded).expect("it fits");
        encoded.0[..len].to_vec()
    });
    damage_all(&messages, |bytes| match ToAgent::decode(bytes) {
        Ok(message) => message.encode(&mut encoded).is_ok(),
        Err(_) => false,
    });
}

#[test]
fn the_knobs_survive_any_bytes() {
    use ksm_engine::arena::MemfdStore;
    use ksm_engine::engine::Engine;
    let mut dice = Dice(77);
    let mut engine = Engine::new(MemfdStore::new(), [1; 32]);
    let texts: Vec<Vec<u8>> = [
        "0\n",
        "18446744073709551615",
        "-1",
        " 1",
        "[none] scan-time",
        "2",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let (mut taken, mut damaged) = (0_u64, buffer());
    for _ in 0..CASES / 100 {
        let text = &texts[dice.below(texts.len())];
        let len = dice.damage(text, &mut damaged).min(4096);
        let files: Vec<KsmFile> = KsmFile::ALL.into_iter().collect();
        let file = files[dice.below(files.len())];
        taken += u64::from(engine.write(file, &damaged.0[..len]).is_ok());
        assert!(engine.read(file).ends_with('\n'));
    }
    assert!(taken > CASES / 10_000, "{taken} values were taken");
}
