//! Calls that change mappings: each excludes the agent, makes the system call, and brings the tables up to date.
//!
//! A range that was merged is several mappings to the kernel, some of them of our files. Where the call's meaning depends
//! on that (a protection other than read and write, locked memory, moving), its pages become plain memory first.

use crate::changing::{Changing, pages};
use crate::mode;
use crate::suitable;
use crate::sys::call::{Answer, call};
use ksm_engine::page::{PAGE_SIZE, PageRun};

/// `mmap`.
pub fn mmap(
    addr: usize,
    len: usize,
    protection: usize,
    flags: usize,
    fd: usize,
    offset: usize,
) -> Answer {
    let arguments = [addr, len, protection, flags, fd, offset];
    let Some(mut changing) = Changing::begin() else {
        return call(libc::SYS_mmap, arguments);
    };
    let start = call(libc::SYS_mmap, arguments)?;
    let run = pages(start, len);
    // Where a mapping was replaced; elsewhere nothing is known of the pages.
    changing.forget(run);
    if mode::merges_any() && suitable::is_new_mapping(protection, flags) {
        // Without room in the tables it stays as it is.
        let _ = changing.register(run);
    }
    changing.end();
    Ok(start)
}

/// `munmap`.
pub fn munmap(addr: usize, len: usize) -> Answer {
    let Some(mut changing) = Changing::begin() else {
        return call(libc::SYS_munmap, [addr, len]);
    };
    let done = call(libc::SYS_munmap, [addr, len])?;
    changing.forget(pages(addr, len));
    Ok(done)
}

/// `mprotect`, and with a key `pkey_mprotect`.
pub fn mprotect(addr: usize, len: usize, protection: usize, key: Option<usize>) -> Answer {
    let make = || match key {
        None => call(libc::SYS_mprotect, [addr, len, protection]),
        Some(key) => call(libc::SYS_pkey_mprotect, [addr, len, protection, key]),
    };
    let run = pages(addr, len);
    let plain = protection & !WRITABLE == 0 && protection != 0 && key.is_none();
    let begun = if plain && protection == WRITABLE {
        Changing::begin()
    } else {
        Changing::begin_unmerged(run)?
    };
    let Some(mut changing) = begun else {
        return make();
    };
    let done = make()?;
    if protection != WRITABLE {
        withhold_files(&mut changing, run);
    } else if mode::merges_any() {
        suitable::register(run, &mut changing);
    }
    changing.end();
    Ok(done)
}

/// `PROT_READ | PROT_WRITE`.
const WRITABLE: usize = (libc::PROT_READ | libc::PROT_WRITE).unsigned_abs() as usize;

/// `mlock`, and with flags `mlock2`.
pub fn mlock(addr: usize, len: usize, flags: Option<usize>) -> Answer {
    let make = || match flags {
        None => call(libc::SYS_mlock, [addr, len]),
        Some(flags) => call(libc::SYS_mlock2, [addr, len, flags]),
    };
    // The kernel rounds the address down.
    let run = pages(addr, len.saturating_add(addr % PAGE_SIZE));
    let Some(mut changing) = Changing::begin_unmerged(run)? else {
        return make();
    };
    let done = make()?;
    withhold_files(&mut changing, run);
    Ok(done)
}

/// `mlockall`.
pub fn mlockall(flags: usize) -> Answer {
    let everything = PageRun::between(0, ksm_engine::page::PAGE_LIMIT);
    let Some(mut changing) = Changing::begin_unmerged(everything)? else {
        return call(libc::SYS_mlockall, [flags]);
    };
    let done = call(libc::SYS_mlockall, [flags])?;
    withhold_files(&mut changing, everything);
    Ok(done)
}

/// `brk`: the new end of the heap, as the kernel says it. `old` is the end that the C library knows.
pub fn brk(new: usize, old: usize) -> Answer {
    let Some(mut changing) = Changing::begin() else {
        return call(libc::SYS_brk, [new]);
    };
    let end = call(libc::SYS_brk, [new])?;
    let page = |address: usize| address.div_ceil(PAGE_SIZE) as u64;
    if old == 0 {
        // Nobody has asked before: nothing was there.
    } else if end < old {
        changing.forget(PageRun::between(page(end), page(old)));
    } else {
        let grown = PageRun::between(page(old), page(end));
        if grown.len > 0 && mode::merges_any() {
            let _ = changing.register(grown);
        }
    }
    changing.end();
    Ok(end)
}

/// Private copies that could not be made plain again keep the agent's hands off: it would map them with the protection
/// of ordinary memory.
fn withhold_files(changing: &mut Changing, run: PageRun) {
    let mut rest = run;
    while let Some(in_file) = changing.first_in_file(rest) {
        changing.withhold(in_file);
        rest = PageRun::between(in_file.end(), run.end());
    }
}
