//! Merging all of a process: `prctl(PR_SET_MEMORY_MERGE)`, and what a program inherits of it.
//!
//! The kernel's own flag would have the host's ksmd merge this memory too, so it is never set, and taken over where a
//! parent has set it. Over an exec the mode travels in the environment.

use crate::changing::Changing;
use crate::sandbox;
use crate::suitable;
use crate::sys::call::{Answer, Quiet, call};
use crate::sys::environment;
use crate::sys::patch::divert_own_calls;
use ksm_client::space::Space;
use ksm_client::{Client, Config};
use ksm_engine::page::PageRun;
use rustix::io::Errno;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// In the environment of a program that is to merge all of its memory.
pub const VARIABLE: &CStr = c"KSMFS_MEMORY_MERGE";

static MERGES_ANY: AtomicBool = AtomicBool::new(false);

/// Whether all memory of this process is to be merged.
pub fn merges_any() -> bool {
    MERGES_ANY.load(Ordering::Relaxed)
}

/// `PR_SET_MEMORY_MERGE`, `PR_GET_MEMORY_MERGE` and all other `prctl`s.
pub fn prctl(option: libc::c_int, arguments: [usize; 4]) -> Answer {
    match (option, arguments) {
        (libc::PR_SET_MEMORY_MERGE, [_, 0, 0, 0]) => set(arguments[0] != 0).map(|()| 0),
        (libc::PR_GET_MEMORY_MERGE, [0, 0, 0, 0]) => Ok(usize::from(merges_any())),
        (libc::PR_SET_MEMORY_MERGE | libc::PR_GET_MEMORY_MERGE, _) => Err(Errno::INVAL),
        (option, [a, b, c, d]) => {
            let number = usize::try_from(option).unwrap_or(usize::MAX);
            let make = || call(libc::SYS_prctl, [number, a, b, c, d]);
            if option == libc::PR_SET_SECCOMP {
                sandbox::enter(make)
            } else {
                make()
            }
        }
    }
}

/// The client of this process, started if need be. No signal handler may run meanwhile: it could be stopped with the
/// lock taken.
pub fn client() -> Result<Client, Errno> {
    match Client::current() {
        Some(client) => Ok(client),
        None if sandbox::is_entered() => Err(Errno::AGAIN),
        None => {
            // Before the client makes a thread.
            divert_own_calls();
            Client::start(&Config::default().track_writes()).map_err(|_| Errno::AGAIN)
        }
    }
}

fn set(all: bool) -> Result<(), Errno> {
    if all == merges_any() {
        return Ok(());
    }
    let quiet = Quiet::begin();
    if all {
        let client = client()?;
        // Before the maps are listed: what is mapped meanwhile registers itself.
        MERGES_ANY.store(true, Ordering::Relaxed);
        client.say_merges_any(true);
        if let Some(mut changing) = Changing::begin() {
            suitable::register_all(&mut changing);
        }
        if !sandbox::is_entered() {
            client.announce();
        }
    } else {
        MERGES_ANY.store(false, Ordering::Relaxed);
        if let Some(client) = Client::current() {
            client.say_merges_any(false);
            unmerge_everything(client)?;
            if !sandbox::is_entered() {
                client.announce();
            }
        }
    }
    drop(quiet);
    crate::processes::say_in_environment(all);
    Ok(())
}

fn unmerge_everything(client: Client) -> Result<(), Errno> {
    let Some(space) = Space::get() else {
        return Ok(());
    };
    while let Some(run) = space.first_registered(PageRun::EVERYTHING) {
        client.unmerge(run).map_err(|error| error.errno())?;
    }
    Ok(())
}

/// At the start of a program: takes over what it inherits.
pub fn inherit() {
    let asked = environment::asks_for_merging();
    let get = libc::PR_GET_MEMORY_MERGE.unsigned_abs() as usize;
    let set_it = libc::PR_SET_MEMORY_MERGE.unsigned_abs() as usize;
    let kernels = call(libc::SYS_prctl, [get, 0, 0, 0, 0]) == Ok(1);
    if kernels {
        let _ = call(libc::SYS_prctl, [set_it, 0, 0, 0, 0]);
    }
    if asked || kernels {
        // Without memory for it the program runs unmerged.
        let _ = set(true);
    }
}
