//! Calls that change mappings: each excludes the agent, makes the system call, and brings the tables up to date.
//!
//! A range that was merged is several mappings to the kernel, some of them of our files. Most calls do not mind; moving is
//! in [`crate::moving`].

use crate::changing::{Changing, pages};
use crate::mode;
use crate::sandbox;
use crate::suitable;
use crate::sys::call::{Answer, call, wide};
use crate::sys::vectors::segment_len;
use ksm_client::space::Space;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;

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

/// `shmat`: with `SHM_REMAP` it takes the place of what is mapped there.
pub fn shmat(id: libc::c_int, addr: usize, flags: libc::c_int) -> Answer {
    let make = || call(libc::SYS_shmat, [wide(id), addr, wide(flags)]);
    if flags & libc::SHM_REMAP == 0 || Space::get().is_none() {
        return make();
    }
    if sandbox::is_entered() {
        // How long the segment is cannot be found out any more.
        return Err(Errno::NOMEM);
    }
    let len = segment_len(id)?;
    let Some(mut changing) = Changing::begin() else {
        return make();
    };
    let start = make()?;
    changing.forget(pages(start, len));
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

/// `mprotect`, and with a key `pkey_mprotect`. The agent looks at the protection of what it maps anew, but not at keys:
/// memory with a key is not merged.
pub fn mprotect(addr: usize, len: usize, protection: usize, key: Option<usize>) -> Answer {
    let make = || match key {
        None => call(libc::SYS_mprotect, [addr, len, protection]),
        Some(key) => call(libc::SYS_pkey_mprotect, [addr, len, protection, key]),
    };
    let run = pages(addr, len);
    let begun = match key {
        None => Changing::begin(),
        Some(_) => Changing::begin_unmerged(run)?,
    };
    let Some(mut changing) = begun else {
        return make();
    };
    let done = make()?;
    if key.is_some() {
        changing.withhold(run);
    } else if mode::merges_any() && protection & suitable::WRITE != 0 {
        suitable::register(run, &mut changing);
    }
    changing.end();
    Ok(done)
}

/// `mlock`, `mlock2`, `mlockall` and the like, with the numbers and arguments of the system calls.
pub fn lock<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Answer {
    let _changing = Changing::begin();
    call(number, arguments)
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
