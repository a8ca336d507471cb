//! Short sequences written by hand.

use super::operation::{Caller, FileCall, Operation, PathCall, Step, Target, Value};
use ksm_engine::knobs::KsmFile;
use rustix::fs::OFlags;

/// The file that most of them are about.
pub const KNOB: Target = Target::File(KsmFile::PagesToScan);

pub fn by(caller: Caller, operations: impl IntoIterator<Item = Operation>) -> Vec<Step> {
    let step = |operation| Step {
        caller,
        watch_times: false,
        operation,
    };
    operations.into_iter().map(step).collect()
}

pub fn at(target: Target, call: PathCall) -> Vec<Step> {
    by(Caller::Root, [Operation::At { target, call }])
}

/// Opens the file in the first slot, and makes calls on it.
pub fn on_open(flags: OFlags, calls: impl IntoIterator<Item = FileCall>) -> Vec<Step> {
    open(KNOB, flags, calls)
}

pub fn open(target: Target, flags: OFlags, calls: impl IntoIterator<Item = FileCall>) -> Vec<Step> {
    let open = Operation::Open {
        slot: 0,
        target,
        flags,
    };
    let calls = calls
        .into_iter()
        .map(|call| Operation::On { slot: 0, call });
    by(Caller::Root, std::iter::once(open).chain(calls))
}

pub fn write(text: &str) -> FileCall {
    FileCall::Write(vec![Value(text.into())])
}

/// Has the times of the file watched in every step.
pub fn watched(steps: Vec<Step>) -> Vec<Step> {
    let watch = |step| Step {
        watch_times: true,
        ..step
    };
    steps.into_iter().map(watch).collect()
}
