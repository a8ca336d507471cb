//! The bytes of version 4 of the protocol, as programs that are older than this one send and expect them.
//!
//! Nothing here may ever be changed: it is not what the code says, but what others have been built with.

use ksm_engine::digest::Salt;
use ksm_engine::order::{
    MapRun, OrderId, OrderRef, Outcome, OutcomeRun, ReportRef, VisitRun, VisitState,
};
use ksm_engine::page::{ArenaId, Digest, PageRun, Slot};
use ksm_engine::wire::{
    Birth, Figures, Hello, Label, MAX_MESSAGE, MessageBuffer, MountDevice, RefusalReason, ToAgent,
    ToDaemon, Version, Versions,
};

/// Bytes of a header.
const HEADER: usize = 48;

/// A header of version 4, and what follows it.
fn message(kind: u16, order: u64, scalars: [u64; 3], counts: [u32; 2], body: &[u8]) -> Vec<u8> {
    let mut bytes = b"ksm\x01\x04\x00".to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(order.to_le_bytes());
    bytes.extend(scalars.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(counts.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(body);
    bytes
}

fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn in_buffer(bytes: &[u8]) -> Box<MessageBuffer> {
    let mut buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
    buffer.0[..bytes.len()].copy_from_slice(bytes);
    buffer
}

fn as_version_4(encode: impl FnOnce(&mut MessageBuffer) -> usize) -> Vec<u8> {
    let mut buffer = in_buffer(&[]);
    let len = encode(&mut buffer);
    Version(4).stamp(&mut buffer);
    buffer.0[..len].to_vec()
}

fn to_daemon(bytes: &[u8], meaning: &ToDaemon<'_>) {
    let buffer = in_buffer(bytes);
    assert_eq!(
        ToDaemon::decode(&buffer.0[..bytes.len()]).as_ref(),
        Ok(meaning)
    );
    let encoded = as_version_4(|buffer| meaning.encode(buffer).expect("it fits"));
    assert_eq!(encoded, bytes, "{meaning:?}");
}

fn to_agent(bytes: &[u8], meaning: &ToAgent<'_>) {
    let buffer = in_buffer(bytes);
    assert_eq!(
        ToAgent::decode(&buffer.0[..bytes.len()]).as_ref(),
        Ok(meaning)
    );
    let encoded = as_version_4(|buffer| meaning.encode(buffer).expect("it fits"));
    assert_eq!(encoded, bytes, "{meaning:?}");
}

const RANGE: PageRun = PageRun { start: 7, len: 9 };

#[test]
fn what_an_agent_says_is_understood_and_said_alike() {
    let hello = ToDaemon::Hello(Hello {
        pid: 17,
        parent: 16,
        birth: Birth {
            ledger: 1,
            number: 2,
        },
        versions: Versions::only(4),
        label: Label::default(),
    });
    let bytes = message(1, 0, [17, 16, 1 << 32 | 2], [0, 0], &[]);
    let buffer = in_buffer(&bytes);
    assert_eq!(ToDaemon::decode(&buffer.0[..bytes.len()]), Ok(hello));
    to_daemon(&message(2, 0, [0; 3], [0, 0], &[]), &ToDaemon::Query);
    to_daemon(&message(8, 0, [0; 3], [0, 0], &[]), &ToDaemon::Locate);
    to_daemon(&message(10, 0, [0; 3], [0, 0], &[]), &ToDaemon::AllSaid);
    let range = RANGE;
    to_daemon(
        &message(3, 0, [7, 9, 0], [0, 0], &[]),
        &ToDaemon::Register { range },
    );
    to_daemon(
        &message(4, 0, [7, 9, 0], [0, 0], &[]),
        &ToDaemon::Unregister { range },
    );
    to_daemon(
        &message(11, 0, [1, 0, 0], [0, 0], &[]),
        &ToDaemon::Mode { merges_any: true },
    );
    let report = |report| ToDaemon::Report {
        order: OrderId(4),
        report,
    };
    let runs = [
        VisitRun {
            start: 20,
            len: 1,
            state: VisitState::Calm as u32,
            slot: Slot {
                arena: ArenaId(0),
                index: 1,
            },
        },
        VisitRun {
            start: 21,
            len: 3,
            state: VisitState::Merged as u32,
            slot: Slot {
                arena: ArenaId(5),
                index: 6,
            },
        },
    ];
    let mut body = longs(&[20]);
    body.extend(words(&[1, 2, 0, 1]));
    body.extend(longs(&[21]));
    body.extend(words(&[3, 5, 5, 6]));
    body.extend([0xab; 16]);
    to_daemon(
        &message(5, 4, [25, 2, 0], [2, 1], &body),
        &report(ReportRef::Visited {
            end: 25,
            zero_pages: 2,
            runs: &runs,
            digests: &[Digest([0xab; 16])],
        }),
    );
    let outcomes = [OutcomeRun {
        start: 30,
        len: 2,
        outcome: Outcome::Pinned as u32,
    }];
    let mut body = longs(&[30]);
    body.extend(words(&[2, 2]));
    to_daemon(
        &message(6, 4, [0; 3], [1, 0], &body),
        &report(ReportRef::Done {
            outcomes: &outcomes,
        }),
    );
    to_daemon(
        &message(7, 4, [99, 0, 0], [0, 0], &[]),
        &report(ReportRef::Unmerged { end: 99 }),
    );
    to_daemon(
        &message(9, 4, [3, 0, 0], [0, 0], &[]),
        &report(ReportRef::Counted { zero_pages: 3 }),
    );
}

#[test]
fn what_the_daemon_says_is_understood_and_said_alike() {
    to_agent(
        &message(1, 0, [0; 3], [32, 0], &[7; 32]),
        &ToAgent::Welcome {
            salt: Salt([7; 32]),
        },
    );
    to_agent(
        &message(2, 0, [2, 0, 0], [0, 0], &[]),
        &ToAgent::Refused(RefusalReason::TooMany),
    );
    let figures = Figures {
        rmap_items: 1,
        zero_pages: 2,
        merging_pages: 3,
        profit: -4,
    };
    to_agent(
        &message(
            3,
            0,
            [0; 3],
            [1, 0],
            &longs(&[1, 2, 3, 4_u64.wrapping_neg()]),
        ),
        &ToAgent::Figures(figures),
    );
    let device = MountDevice {
        major: 0,
        minor: 55,
        asker: 77,
    };
    to_agent(
        &message(10, 0, [0, 55, 77], [0, 0], &[]),
        &ToAgent::Mount(device),
    );
    let order = |order| ToAgent::Order {
        id: OrderId(8),
        order,
    };
    let (range, runs) = (RANGE, &[RANGE][..]);
    to_agent(
        &message(4, 8, [7, 9, 1 << 32 | 64], [1, 0], &longs(&[7, 9])),
        &order(OrderRef::Visit {
            range,
            limit: 64,
            skip: runs,
            nodes: true,
            brief: false,
        }),
    );
    to_agent(
        &message(5, 8, [0; 3], [1, 0], &longs(&[7, 9])),
        &order(OrderRef::Donate { runs }),
    );
    let slots = &[MapRun {
        start: 7,
        len: 9,
        slot: 2,
    }][..];
    let mut body = longs(&[7]);
    body.extend(words(&[9, 2]));
    let arena = ArenaId(5);
    to_agent(
        &message(6, 8, [5, 0, 0], [1, 0], &body),
        &order(OrderRef::Map { arena, runs: slots }),
    );
    to_agent(
        &message(9, 8, [5, 0, 0], [1, 0], &body),
        &order(OrderRef::Remap { arena, runs: slots }),
    );
    to_agent(
        &message(7, 8, [0; 3], [1, 0], &longs(&[7, 9])),
        &order(OrderRef::Zero { runs }),
    );
    to_agent(
        &message(8, 8, [7, 9, 0], [0, 0], &[]),
        &order(OrderRef::Unmerge { range }),
    );
    to_agent(
        &message(11, 8, [0; 3], [0, 0], &[]),
        &order(OrderRef::Count),
    );
    to_agent(
        &message(12, 8, [0; 3], [1, 0], &longs(&[7, 9])),
        &order(OrderRef::Split { runs }),
    );
}

/// Brief visits, and long ones, came with version 6.
#[test]
fn only_newer_peers_sum_up_and_are_asked_to() {
    let visit = |version: u16, how: u64| {
        let mut buffer = in_buffer(&message(4, 8, [7, 9, how], [0, 0], &[]));
        Version(version).stamp(&mut buffer);
        ToAgent::decode(&buffer.0[..HEADER]).is_ok()
    };
    let unchanged = |version: u16| {
        let mut body = longs(&[20]);
        body.extend(words(&[1, VisitState::Unchanged as u32, 0, 1]));
        let bytes = message(5, 4, [25, 0, 0], [1, 0], &body);
        let mut buffer = in_buffer(&bytes);
        Version(version).stamp(&mut buffer);
        ToDaemon::decode(&buffer.0[..bytes.len()]).is_ok()
    };
    for version in 4..=7 {
        assert!(visit(version, 2048), "{version}");
        assert_eq!(visit(version, 2049), version >= 6, "{version}");
        assert_eq!(visit(version, 1 << 33 | 64), version >= 6, "{version}");
        assert_eq!(unchanged(version), version >= 6, "{version}");
    }
}

/// Labels came with version 7. A greeting without one is what it always was.
#[test]
fn only_a_greeting_that_is_for_newer_daemons_alone_has_a_label() {
    let greeting = |versions, label: &str| {
        let label = Label::new(label).expect("a label");
        let mut buffer = in_buffer(&[]);
        let hello = ToDaemon::Hello(Hello {
            pid: 17,
            parent: 16,
            birth: Birth::default(),
            versions,
            label,
        });
        let len = hello.encode(&mut buffer).expect("it fits");
        let bytes = &buffer.0[..len];
        assert_eq!(bytes.len(), HEADER + label.as_bytes().len());
        let understood = ToDaemon::decode(bytes) == Ok(hello);
        (understood, bytes.to_vec())
    };
    let spoken = Versions::SPOKEN;
    assert_eq!(
        greeting(spoken, ""),
        (true, message(1, 7, [17, 16, 0], [0, 0], &[]))
    );
    for version in 4..7 {
        assert!(greeting(Versions::only(version), "").0, "{version}");
        assert!(!greeting(Versions::only(version), "web").0, "{version}");
    }
    let mut wanted = message(1, 7, [17, 16, 0], [3, 0], b"web");
    wanted[4] = 7;
    assert_eq!(greeting(spoken.with_labels(), "web"), (true, wanted));
    for bad in [&b"a/b"[..], &[b'x'; Label::LONGEST + 1]] {
        let count = u32::try_from(bad.len()).expect("short");
        let mut bytes = message(1, 7, [17, 16, 0], [count, 0], bad);
        bytes[4] = 7;
        let buffer = in_buffer(&bytes);
        assert!(ToDaemon::decode(&buffer.0[..bytes.len()]).is_err());
    }
}

/// Reasons that came with version 7 are told to older agents in the words of theirs.
#[test]
fn a_refusal_is_one_that_the_agent_knows() {
    for reason in RefusalReason::ALL {
        for version in 4..=7 {
            let told = reason.told_to(Version(version)) as u32;
            let known = if version < 7 {
                told <= 4
            } else {
                told == reason as u32
            };
            assert!(known, "{reason:?} at {version}");
        }
    }
}

/// What came with version 5 is nothing that a peer of version 4 may say.
#[test]
fn later_kinds_are_not_taken_from_older_peers() {
    for kind in 12..=14 {
        let bytes = message(kind, 0, [0; 3], [0, 0], &[]);
        let buffer = in_buffer(&bytes);
        assert!(
            ToDaemon::decode(&buffer.0[..bytes.len()]).is_err(),
            "{kind}"
        );
    }
    for kind in 13..=17 {
        let bytes = message(kind, 0, [0; 3], [0, 0], &[]);
        let buffer = in_buffer(&bytes);
        assert!(ToAgent::decode(&buffer.0[..bytes.len()]).is_err(), "{kind}");
    }
}
