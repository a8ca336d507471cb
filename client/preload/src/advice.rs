//! `madvise` and its relatives.
//!
//! What asks for merging is answered as the kernel answers it, and never reaches the kernel. What empties pages
//! empties merged ones, which sit in file mappings of ours, by replacing these. What changes how the kernel treats a
//! mapping is noted for the mappings that merging puts in its place.

use crate::changing::{Changing, pages};
use crate::mode;
use crate::sandbox;
use crate::suitable;
use crate::sys::call::{Answer, Quiet, call};
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
        libc::MADV_DONTFORK => treat(addr, len, advice, Treatment::NotInChildren, true),
        libc::MADV_DOFORK => treat(addr, len, advice, Treatment::NotInChildren, false),
        libc::MADV_DONTDUMP => treat(addr, len, advice, Treatment::NotInDumps, true),
        libc::MADV_DODUMP => treat(addr, len, advice, Treatment::NotInDumps, false),
        libc::MADV_WIPEONFORK => treat(addr, len, advice, Treatment::WipedInChildren, true),
        libc::MADV_KEEPONFORK => treat(addr, len, advice, Treatment::WipedInChildren, false),
        _ => raw(addr, len, advice),
    }
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

/// How the kernel is to treat the range from now on. The agent says it again to what it maps there; what it could not say
/// to a file mapping ends the merging of the range.
fn treat(addr: usize, len: usize, advice: i32, treatment: Treatment, is_on: bool) -> Answer {
    let Some(run) = range(addr, len)? else {
        return raw(addr, len, advice);
    };
    // Noted also while nothing is merged yet: the kernel does not tell it later.
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
