//! What can happen on a host, as a list that can be drawn and shrunk.

use super::knob::any_knob;
use super::play::CONTENTS;
use super::{Knob, Lie};
use ksm_engine::order::Outcome;
use proptest::prelude::*;

/// One thing that happens. Numbers are taken modulo what there is, so every operation means something in every world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named after what they pick")]
pub enum Op {
    /// A process starts in one of the domains, with pages that want to be merged.
    Spawn { domain: u8, content: u8 },
    /// A process forks; nobody tells the daemon of the child.
    Fork { process: u8 },
    /// A process ends.
    Exit { process: u8 },
    /// An agent connects, for a process that has none.
    Connect { process: u8 },
    /// A connection breaks, after the daemon got this many more messages.
    Disconnect { process: u8, delivered: u8 },
    /// An agent is killed; another one connects some time.
    AgentDies { process: u8 },
    /// The app writes a page.
    Write { process: u8, page: u8, content: u8 },
    /// The app writes the same bytes again.
    Rewrite { process: u8, page: u8 },
    /// The app writes one content to many pages.
    Fill {
        process: u8,
        page: u8,
        len: u8,
        content: u8,
    },
    /// The app writes all its pages, a few of each content.
    Stir { process: u8, content: u8 },
    /// The app reads a page.
    Read { process: u8, page: u8 },
    /// `madvise(DONTNEED)`
    Discard { process: u8, page: u8, len: u8 },
    /// `munmap`
    Unmap { process: u8, page: u8, len: u8 },
    /// `mremap`
    Move { process: u8, page: u8, len: u8 },
    /// `madvise(MERGEABLE)`
    Register { process: u8, page: u8, len: u8 },
    /// `madvise(UNMERGEABLE)`
    Unregister { process: u8, page: u8, len: u8 },
    /// A device gets hold of a page.
    Pin { process: u8, page: u8 },
    /// All devices let go of the process's pages, and it is plain that none has any.
    Unpin { process: u8 },
    /// The kernel moves pages to another NUMA node.
    Migrate {
        process: u8,
        page: u8,
        len: u8,
        node: u8,
    },
    /// The agent carries out the next order.
    Obey { process: u8 },
    /// The agent carries out the next order in part, and gives this answer for the rest.
    ObeyInPart {
        process: u8,
        willing: u8,
        refusal: Outcome,
    },
    /// The agent bends the answer to the next order.
    Lie { process: u8, lie: Lie },
    /// The daemon gets the agent's next message.
    Hear { process: u8 },
    /// All agents carry out all orders, and the daemon gets all messages.
    Settle,
    /// A knob is written.
    SetKnob(Knob),
    /// Time passes, in milliseconds.
    Wait { millis: u16 },
    /// Time passes until the engine wants to be woken, if that is soon.
    WaitUntilWoken,
    /// The store refuses its next calls.
    StoreFails { times: u8 },
    /// The daemon is killed, and started again.
    DaemonDies,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Changed),
        Just(Outcome::Pinned),
        Just(Outcome::Gone),
        Just(Outcome::Unsuitable),
        Just(Outcome::NoMaps),
        Just(Outcome::NoMemory),
        Just(Outcome::Unsure),
        Just(Outcome::Busy),
        Just(Outcome::Claimed),
        Just(Outcome::Failed),
    ]
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        Just(Lie::Short),
        Just(Lie::Long),
        Just(Lie::Twice),
        Just(Lie::Backwards),
        (120u8..136).prop_map(Lie::Elsewhere),
        any::<u32>().prop_map(Lie::Nonsense),
        (0u8..3).prop_map(Lie::Digest),
        (0u8..4, 0u8..8).prop_map(|(arena, index)| Lie::Slots(arena, index)),
        Just(Lie::Idle),
        Just(Lie::OtherKind),
        (120u8..136).prop_map(Lie::End),
        (0u8..6).prop_map(Lie::Donation),
        any::<u8>().prop_map(Lie::Invented),
    ]
}

/// Operations in the proportion in which a busy host has them.
pub fn any_op() -> impl Strategy<Value = Op> {
    let process = || any::<u8>();
    let page = || any::<u8>();
    let len = || 1u8..16;
    let content = || 0u8..CONTENTS;
    let range = move || (process(), page(), len());
    prop_oneof![
        3 => (any::<u8>(), content()).prop_map(|(domain, content)| Op::Spawn { domain, content }),
        3 => process().prop_map(|process| Op::Fork { process }),
        2 => process().prop_map(|process| Op::Exit { process }),
        6 => process().prop_map(|process| Op::Connect { process }),
        2 => (process(), 0u8..4)
            .prop_map(|(process, delivered)| Op::Disconnect { process, delivered }),
        1 => process().prop_map(|process| Op::AgentDies { process }),
        20 => (process(), page(), content())
            .prop_map(|(process, page, content)| Op::Write { process, page, content }),
        8 => (process(), page()).prop_map(|(process, page)| Op::Rewrite { process, page }),
        6 => (range(), content()).prop_map(|((process, page, len), content)| Op::Fill {
            process, page, len, content,
        }),
        3 => (process(), content()).prop_map(|(process, content)| Op::Stir { process, content }),
        4 => (process(), page()).prop_map(|(process, page)| Op::Read { process, page }),
        5 => range().prop_map(|(process, page, len)| Op::Discard { process, page, len }),
        3 => range().prop_map(|(process, page, len)| Op::Unmap { process, page, len }),
        2 => range().prop_map(|(process, page, len)| Op::Move { process, page, len }),
        8 => range().prop_map(|(process, page, len)| Op::Register { process, page, len }),
        4 => range().prop_map(|(process, page, len)| Op::Unregister { process, page, len }),
        3 => (process(), page()).prop_map(|(process, page)| Op::Pin { process, page }),
        3 => process().prop_map(|process| Op::Unpin { process }),
        4 => (range(), 0u8..2).prop_map(|((process, page, len), node)| Op::Migrate {
            process, page, len, node,
        }),
        120 => process().prop_map(|process| Op::Obey { process }),
        12 => (process(), 0u8..4, outcome()).prop_map(|(process, willing, refusal)| {
            Op::ObeyInPart { process, willing, refusal }
        }),
        2 => (process(), lie()).prop_map(|(process, lie)| Op::Lie { process, lie }),
        130 => process().prop_map(|process| Op::Hear { process }),
        3 => Just(Op::Settle),
        6 => any_knob().prop_map(Op::SetKnob),
        10 => (1u16..60).prop_map(|millis| Op::Wait { millis }),
        1 => (1000u16..8000).prop_map(|millis| Op::Wait { millis }),
        25 => Just(Op::WaitUntilWoken),
        1 => (1u8..5).prop_map(|times| Op::StoreFails { times }),
        1 => Just(Op::DaemonDies),
    ]
}
