//! Differences that random sequences found, each as the shortest sequence that showed it.

use super::operation::{FileCall, PathCall, Step, Target, Value};
use super::script::{KNOB, at, on_open, open, watched, write};
use ksm_engine::knobs::KsmFile;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags, XattrFlags};

const COUNTER: Target = Target::File(KsmFile::FullScans);
const NAME: &str = "trusted.differential";

fn set(value: &str, flags: XattrFlags) -> Vec<Step> {
    let value = Value(value.into());
    at(
        KNOB,
        PathCall::SetAttribute {
            name: NAME,
            value,
            flags,
        },
    )
}

fn get(name: &'static str, size: usize) -> Vec<Step> {
    at(KNOB, PathCall::GetAttribute { name, size })
}

/// Names and sequences.
pub fn all() -> Vec<(&'static str, Vec<Step>)> {
    let read_at = |size, offset| FileCall::ReadAt { size, offset };
    let map = |shared, write| FileCall::Map { shared, write };
    let allocate = |offset, len| FileCall::Allocate {
        mode: FallocateFlags::empty(),
        offset,
        len,
    };
    vec![
        (
            "a read elsewhere than where the last one ended is fresh",
            on_open(
                OFlags::RDWR,
                [read_at(1, 0), write("7654"), read_at(2, 2), read_at(9, 4)],
            ),
        ),
        (
            "a read where the last one ended is of the same text",
            on_open(
                OFlags::RDWR,
                [read_at(1, 0), write("7654"), read_at(9, 1), read_at(9, 4)],
            ),
        ),
        (
            "private mappings are refused as shared ones are",
            on_open(
                OFlags::RDWR,
                [map(false, false), map(false, true), map(true, false)],
            ),
        ),
        (
            "the fourth access mode opens a counter",
            open(COUNTER, OFlags::RWMODE, [FileCall::Flags]),
        ),
        (
            "a counter refuses writers before it refuses O_DIRECT",
            open(COUNTER, OFlags::WRONLY | OFlags::DIRECT, []),
        ),
        (
            "a truncation by path leaves the times",
            watched(at(KNOB, PathCall::Truncate(5))),
        ),
        (
            "a truncation of an open file, and O_TRUNC, set the times",
            watched(on_open(
                OFlags::WRONLY | OFlags::TRUNC,
                [FileCall::Truncate(5), FileCall::Truncate(0)],
            )),
        ),
        (
            "a truncation to 2 GiB is too big",
            at(KNOB, PathCall::Truncate(1 << 31)),
        ),
        (
            "allocation is not supported, but beyond 2 GiB too big",
            on_open(
                OFlags::RDWR,
                [allocate(0, 10), allocate(1 << 31, 10), allocate(0, 0)],
            ),
        ),
        (
            "renaming with flags is invalid",
            at(
                KNOB,
                PathCall::RenameTo(Target::Missing, RenameFlags::NOREPLACE),
            ),
        ),
        (
            "root may keep extended attributes",
            [
                set("12345", XattrFlags::CREATE),
                set("1", XattrFlags::CREATE),
                get(NAME, 0),
                get(NAME, 3),
                get(NAME, 64),
                at(KNOB, PathCall::ListAttributes { size: 64 }),
                at(KNOB, PathCall::RemoveAttribute(NAME)),
                get(NAME, 64),
                set("1", XattrFlags::REPLACE),
            ]
            .concat(),
        ),
        (
            "names of unknown extended attributes are told from missing ones",
            [
                get("user.differential", 9),
                get("differential", 9),
                get("system.posix_acl_access", 9),
            ]
            .concat(),
        ),
        (
            "access times are relative, as the mount of sysfs says",
            at(Target::Directory, PathCall::FileSystem),
        ),
    ]
}
