//! `madvise` and its relatives.
//!
//! What asks for merging is answered as the kernel answers it, and never reaches the kernel. What empties pages
//! empties merged ones, which sit in file mappings of ours, by replacing these. What changes how the kernel treats a
//! mapping is noted for the mappings that merging puts in its place.

use crate::changing::{Changing, pages};
use crate::mode;
use crate::sandbox;
use crate::suitable;
use crate::sys::call::{Answer, Quiet, call, wide};
use crate::sys::vectors::Vectors;
use ksm_client::Client;
use ksm_client::space::Space;
use ksm_client::space::treatment::Treatment;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;

/// `MADV_GUARD_INSTALL` (Linux 6.13).
const GUARD_INSTALL: i32 = 102;
/// `MADV_DONTNEED_LOCKED` (Linux 5.18).
const DONTNEED_LOCKED: i32 = 24;

/// `madvise`.
pub fn madvise(addr: usize, len: usize, advice: i32) -> Answer {
    match advice {
        libc::MADV_MERGEABLE | libc::MADV_UNMERGEABLE => merge(addr, len, advice),
        libc::MADV_DONTNEED | DONTNEED_LOCKED | libc::MADV_FREE | GUARD_INSTALL => {
            empty(addr, len, advice)
        }
        libc::MADV_REMOVE => remove(addr, len),
        libc::MADV_COLLAPSE => collapse(addr, len),
        libc::MADV_DONTFORK => treat(addr, len, advice, Treatment::NotInChildren, true),
        libc::MADV_DOFORK => treat(addr, len, advice, Treatment::NotInChildren, false),
        libc::MADV_DONTDUMP => treat(addr, len, advice, Treatment::NotInDumps, true),
        libc::MADV_DODUMP => treat(addr, len, advice, Treatment::NotInDumps, false),
        libc::MADV_WIPEONFORK => treat(addr, len, advice, Treatment::WipedInChildren, true),
        libc::MADV_KEEPONFORK => treat(addr, len, advice, Treatment::WipedInChildren, false),
        _ => raw(addr, len, advice),
    }
}

/// `process_madvise`. On oneself it is `madvise` of several ranges (Linux 6.13), of which it says how many bytes it came.
pub fn process_madvise(fd: i32, vectors: usize, count: usize, advice: i32, flags: usize) -> Answer {
    let number = usize::try_from(advice).unwrap_or(usize::MAX);
    let make = |count| {
        let arguments = [wide(fd), vectors, count, number, flags];
        call(libc::SYS_process_madvise, arguments)
    };
    if !is_ours(advice) || Space::get().is_none() && !starts(advice) {
        return make(count);
    }
    if sandbox::is_entered() {
        // Whether it is oneself cannot be found out any more.
        return Err(Errno::AGAIN);
    }
    if !names_this_process(fd) {
        return make(count);
    }
    // What is wrong with the call as such.
    make(0)?;
    let (mut vectors, mut done) = (Vectors::new(vectors, count), 0);
    while let Some(some) = vectors.next_some() {
        for [start, len] in some.iter().copied() {
            match madvise(start, len, advice) {
                Ok(_) => done += len,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => return Ok(done),
            }
        }
    }
    match vectors.is_at_end() {
        false if done == 0 => make(count),
        _ => Ok(done),
    }
}

/// Whether the kernel alone would do something else than we.
fn is_ours(advice: i32) -> bool {
    let others = [
        libc::MADV_NORMAL,
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_WILLNEED,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
    ];
    !others.contains(&advice)
}

fn starts(advice: i32) -> bool {
    [
        libc::MADV_MERGEABLE,
        libc::MADV_WIPEONFORK,
        libc::MADV_DONTFORK,
        libc::MADV_DONTDUMP,
    ]
    .contains(&advice)
}

/// Whether a descriptor of a process, or one of the numbers that need none (Linux 6.15), is this process.
fn names_this_process(fd: i32) -> bool {
    const SELVES: [i32; 2] = [-10_000, -10_001];
    let own = || {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        let id = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
        Some(id.trim() == rustix::process::getpid().as_raw_pid().to_string())
    };
    SELVES.contains(&fd) || fd >= 0 && own().unwrap_or(false)
}

fn raw(addr: usize, len: usize, advice: i32) -> Answer {
    let advice = usize::try_from(advice).unwrap_or(usize::MAX);
    call(libc::SYS_madvise, [addr, len, advice])
}

/// The pages of the call; `None` for none.
fn range(addr: usize, len: usize) -> Result<Option<PageRun>, Errno> {
    let rounded = len.checked_next_multiple_of(PAGE_SIZE);
    let end = rounded.and_then(|len| addr.checked_add(len));
    if !addr.is_multiple_of(PAGE_SIZE) || end.is_none() {
        return Err(Errno::INVAL);
    }
    let run = pages(addr, len);
    Ok((run.len > 0).then_some(run))
}

fn merge(addr: usize, len: usize, advice: i32) -> Answer {
    let Some(run) = range(addr, len)? else {
        return Ok(0);
    };
    let quiet = Quiet::begin();
    let has_holes = if advice == libc::MADV_MERGEABLE {
        let client = mode::client()?;
        let registered = match Changing::begin() {
            Some(mut changing) => suitable::register(run, &mut changing),
            None => return Err(Errno::AGAIN),
        };
        if !sandbox::is_entered() {
            client.announce();
        }
        if registered.is_full {
            return Err(Errno::AGAIN);
        }
        registered.has_holes
    } else {
        if sandbox::is_entered() && Space::get().is_some() {
            return Err(Errno::AGAIN);
        }
        if let Some(client) = Client::current().filter(|_| run.is_valid()) {
            client.unmerge(run).map_err(|error| error.errno())?;
        }
        suitable::has_holes(run)
    };
    drop(quiet);
    if has_holes { Err(Errno::NOMEM) } else { Ok(0) }
}

fn empty(addr: usize, len: usize, advice: i32) -> Answer {
    let Some(mut changing) = Changing::begin() else {
        return raw(addr, len, advice);
    };
    let Ok(Some(run)) = range(addr, len) else {
        return raw(addr, len, advice);
    };
    changing.leave_files(run)?;
    let done = raw(addr, len, advice);
    if advice != libc::MADV_FREE {
        changing.discarded(run);
    }
    done
}

/// `MADV_REMOVE` is for shared mappings.
fn remove(addr: usize, len: usize) -> Answer {
    if let (Some(changing), Ok(Some(run))) = (Changing::begin(), range(addr, len))
        && changing.first_in_file(run).is_some()
    {
        return Err(Errno::INVAL);
    }
    raw(addr, len, libc::MADV_REMOVE)
}

/// The kernel makes no huge page of pages that are protected.
fn collapse(addr: usize, len: usize) -> Answer {
    let changing = Changing::begin().zip(range(addr, len).ok().flatten());
    let _changing = changing.map(|(mut changing, run)| {
        changing.end_tracking(run);
        changing
    });
    raw(addr, len, libc::MADV_COLLAPSE)
}

/// How the kernel is to treat the range from now on. The agent says it again to what it maps there; what it could not say
/// to a file mapping ends the merging of the range.
fn treat(addr: usize, len: usize, advice: i32, treatment: Treatment, is_on: bool) -> Answer {
    let Some(run) = range(addr, len)? else {
        return raw(addr, len, advice);
    };
    // Noted also while nothing is merged yet: the kernel does not tell it later. Forks have to leave alone what notes it.
    Client::watch_forks()?;
    Space::get_or_create()?;
    let begun = match treatment {
        Treatment::WipedInChildren => Changing::begin_unmerged(run)?,
        _ => Changing::begin(),
    };
    let Some(mut changing) = begun else {
        return raw(addr, len, advice);
    };
    let done = raw(addr, len, advice);
    if done.is_ok() || done == Err(Errno::NOMEM) {
        changing.treat(run, treatment, is_on);
    }
    if done.is_ok() && !is_on && mode::merges_any() {
        suitable::register(run, &mut changing);
    }
    changing.end();
    done
}
