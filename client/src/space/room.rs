//! Whether there is memory left for pages that become private again.
//!
//! Unmerging a process can need all that merging ever saved. It goes in steps, and before each step this is asked of
//! the host and of the memory cgroups that the app is in: better an unmerge that stops half way with an error than an
//! app that the kernel kills. What the page cache holds counts as room: the kernel gives it up first.

use crate::proc_file::{Path, field, number, open_at};
use ksm_engine::page::PAGE_SIZE;
use rustix::fs::{CWD, OFlags};

/// Bytes that stay untouched: 64 MiB, or a sixteenth of a smaller host.
const RESERVE: u64 = 64 << 20;
/// Bytes of a cgroup's limit that stay untouched.
const GROUP_RESERVE: u64 = 1 << 20;

/// Where memory cgroups are and what their files are called, by version.
struct Hierarchy {
    /// How its line in `/proc/PID/cgroup` is told from the others.
    line: &'static [u8],
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Page cache, in `memory.stat`.
    cache: [&'static [u8]; 2],
}

const HIERARCHIES: [Hierarchy; 3] = [
    Hierarchy {
        line: b":memory:",
        mount: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        cache: [b"total_active_file ", b"total_inactive_file "],
    },
    Hierarchy {
        line: b"0::",
        mount: "/sys/fs/cgroup",
        limit: "memory.max",
        usage: "memory.current",
        cache: [b"active_file ", b"inactive_file "],
    },
    Hierarchy {
        line: b"0::",
        mount: "/sys/fs/cgroup/unified",
        limit: "memory.max",
        usage: "memory.current",
        cache: [b"active_file ", b"inactive_file "],
    },
];

/// Whether process `app` can have `pages` more pages. Where the kernel does not say, yes.
pub fn has_room_for(pages: u64, app: u32) -> bool {
    let bytes = pages * PAGE_SIZE as u64;
    let host = host().is_none_or(|(total, available)| available >= bytes + RESERVE.min(total / 16));
    host && groups(app).is_none_or(|room| room >= bytes + GROUP_RESERVE)
}

/// Bytes of the host's memory, and those that are available.
fn host() -> Option<(u64, u64)> {
    let mut buffer = [0; 1024];
    let text = read(c"/proc/meminfo", &mut buffer)?;
    let kib = |name| field(text, name, 10).map(|kib| kib * 1024);
    Some((kib(b"MemTotal:")?, kib(b"MemAvailable:")?))
}

/// The least room in any memory cgroup that the process is in.
fn groups(app: u32) -> Option<u64> {
    let mut buffer = [0; 4096];
    let file = Path::<64>::new(format_args!("/proc/{app}/cgroup"))?;
    let text = std::str::from_utf8(read(file.as_c_str()?, &mut buffer)?).ok()?;
    HIERARCHIES
        .iter()
        .filter_map(|hierarchy| least_room(hierarchy, text))
        .min()
}

fn least_room(hierarchy: &Hierarchy, groups: &str) -> Option<u64> {
    let mark = std::str::from_utf8(hierarchy.line).ok()?;
    let line = groups.lines().find(|line| line.contains(mark))?;
    let mut group = line.splitn(3, ':').nth(2)?.trim_end_matches('/');
    let mut least = None;
    // A limit further up holds as well. The top of a hierarchy has none.
    while !group.is_empty() {
        let room = room_in(hierarchy, group);
        least = least.into_iter().chain(room).min();
        group = group.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    // Inside a container its own group looks like the top.
    least.or_else(|| room_in(hierarchy, ""))
}

fn room_in(hierarchy: &Hierarchy, group: &str) -> Option<u64> {
    let mut buffer = [0; 4096];
    let mut value = |file: &str| {
        let path = Path::<512>::new(format_args!("{}{group}/{file}", hierarchy.mount))?;
        // "max" is no number, and no limit.
        number(read(path.as_c_str()?, &mut buffer)?.trim_ascii(), 10)
    };
    let (limit, usage) = (value(hierarchy.limit)?, value(hierarchy.usage)?);
    let path = Path::<512>::new(format_args!("{}{group}/memory.stat", hierarchy.mount))?;
    let stat = read(path.as_c_str()?, &mut buffer).unwrap_or_default();
    let cache: u64 = hierarchy
        .cache
        .iter()
        .filter_map(|name| field(stat, name, 10))
        .sum();
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}

fn read<'a>(path: &std::ffi::CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = open_at(CWD, path, OFlags::empty())?;
    let got = rustix::io::read(&file, &mut *buffer).ok()?;
    buffer.get(..got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_fits_and_more_than_the_host_has_does_not() {
        let (total, available) = host().expect("the kernel says");
        assert!(available <= total);
        assert!(has_room_for(1, std::process::id()));
        assert!(!has_room_for(total / PAGE_SIZE as u64, std::process::id()));
    }
}
