//! The engine among the simulator's model processes, whose operations come from the input: after each of them every
//! process reads what it wrote, and the books are right; in the end everything merges that can.

use super::bytes::Bytes;
use ksm_engine::engine::Extras;
use ksm_engine::order::Outcome;
use testsuite::sim::{Knob, Lie, Op, World};

const MOST_OPS: usize = 200;

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.byte();
    let mut world = World::new([8, 4, 13][usize::from(how) % 3]);
    world.set_extras(Extras {
        refile_percent: if how & 64 == 0 { 0 } else { 40 },
        meet_phases: how & 128 != 0,
        huge_pages_as_ksmd: false,
        dry_run: false,
    });
    for _ in 0..MOST_OPS {
        if bytes.is_empty() {
            break;
        }
        world.play(&op(&mut bytes));
        world.check();
    }
    world.calm_down();
    world.check();
    world.check_settled();
}

fn op(bytes: &mut Bytes<'_>) -> Op {
    let kind = bytes.byte();
    let process = kind >> 5;
    let mut next = || bytes.byte();
    match kind & 31 {
        0 => Op::Spawn {
            domain: next(),
            content: next() % 10,
        },
        1 => Op::Fork { process },
        2 => Op::Exit { process },
        3 => Op::Connect { process },
        4 => Op::Disconnect {
            process,
            delivered: next() % 4,
        },
        5 | 6 => Op::Write {
            process,
            page: next(),
            content: next() % 10,
        },
        7 => Op::Rewrite {
            process,
            page: next(),
        },
        8 => Op::Fill {
            process,
            page: next(),
            len: 1 + next() % 15,
            content: next() % 10,
        },
        9 => Op::Stir {
            process,
            content: next() % 10,
        },
        10 => Op::Read {
            process,
            page: next(),
        },
        11 => Op::Discard {
            process,
            page: next(),
            len: 1 + next() % 15,
        },
        12 => Op::Unmap {
            process,
            page: next(),
            len: 1 + next() % 15,
        },
        13 => Op::Move {
            process,
            page: next(),
            len: 1 + next() % 15,
        },
        14 => Op::Register {
            process,
            page: next(),
            len: 1 + next() % 15,
        },
        15 => Op::Unregister {
            process,
            page: next(),
            len: 1 + next() % 15,
        },
        16 => Op::Pin {
            process,
            page: next(),
        },
        17 => Op::Unpin { process },
        18 => Op::Migrate {
            process,
            page: next(),
            len: 1 + next() % 15,
            node: next() % 2,
        },
        19..22 => Op::Obey { process },
        22 => Op::ObeyInPart {
            process,
            willing: next() % 4,
            refusal: outcome(next()),
        },
        23 => Op::Lie {
            process,
            lie: lie(next(), next()),
        },
        24 | 25 => Op::Hear { process },
        26 => Op::Settle,
        27 => Op::SetKnob(knob(next(), next())),
        28 => Op::Wait {
            millis: u16::from(next()) << (process * 2).min(5),
        },
        29 => Op::WaitUntilWoken,
        30 => Op::StoreFails {
            times: 1 + process % 4,
        },
        _ => Op::DaemonDies,
    }
}

fn outcome(byte: u8) -> Outcome {
    const ALL: [Outcome; 10] = [
        Outcome::Changed,
        Outcome::Pinned,
        Outcome::Gone,
        Outcome::Unsuitable,
        Outcome::NoMaps,
        Outcome::NoMemory,
        Outcome::Unsure,
        Outcome::Busy,
        Outcome::Claimed,
        Outcome::Failed,
    ];
    ALL[usize::from(byte) % ALL.len()]
}

fn lie(kind: u8, what: u8) -> Lie {
    match kind % 13 {
        0 => Lie::Short,
        1 => Lie::Long,
        2 => Lie::Twice,
        3 => Lie::Backwards,
        4 => Lie::Elsewhere(what),
        5 => Lie::Nonsense(u32::from(what) << (kind & 24)),
        6 => Lie::Digest(what % 3),
        7 => Lie::Slots(what >> 6, what & 7),
        8 => Lie::Idle,
        9 => Lie::OtherKind,
        10 => Lie::End(what),
        11 => Lie::Donation(what % 6),
        _ => Lie::Invented(what),
    }
}

fn knob(kind: u8, value: u8) -> Knob {
    match kind % 9 {
        0 => Knob::Run(value % 3),
        1 => Knob::SleepMillisecs(u16::from(value % 40)),
        2 => Knob::PagesToScan(u16::from(value)),
        3 => Knob::MaxPageSharing(2 + value % 4),
        4 => Knob::MergeAcrossNodes(value & 1 != 0),
        5 => Knob::UseZeroPages(value & 1 != 0),
        6 => Knob::SmartScan(value & 1 != 0),
        7 => Knob::PruneMillisecs(u16::from(value) * 20),
        _ => Knob::Advisor(value & 1 != 0),
    }
}
