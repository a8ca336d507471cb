//! The memory and CPU of a group of processes, as the kernel accounts for them.
//!
//! Nothing here asks the engine: these are the figures by which its promises are judged.

use procfs::process::{FDTarget, MMapPath, MemoryMap, Process};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const BLOCK: u64 = 512;

/// Memory of a group of processes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Proportional set size of all processes, less what they map of arenas.
    pub processes: u64,
    /// Memory of arenas, mapped or not.
    pub arenas: u64,
}

impl Footprint {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.processes + self.arenas
    }
}

/// Whether a map is of an arena.
#[must_use]
pub fn is_arena(map: &MemoryMap) -> bool {
    let MMapPath::Path(path) = &map.pathname else {
        return false;
    };
    path.to_str()
        .is_some_and(|path| path.starts_with("/memfd:ksm-arena"))
}

/// Measures processes, of which `daemon` holds the arenas.
///
/// # Errors
/// When a process is gone or may not be looked at.
pub fn of(processes: &[u32], daemon: Option<u32>) -> Result<Footprint, procfs::ProcError> {
    let held = match daemon {
        Some(pid) => arenas_held(&open(pid)?)?,
        None => HashMap::new(),
    };
    let mut footprint = Footprint {
        processes: 0,
        arenas: held.values().sum(),
    };
    for pid in processes.iter().copied().chain(daemon) {
        for map in open(pid)?.smaps()? {
            let pss = map.extension.map.get("Pss").copied().unwrap_or(0);
            if !is_arena(&map) {
                footprint.processes += pss;
                continue;
            }
            // Private copies in an arena's map belong to the process; arenas that the daemon has let go count as
            // far as they are mapped.
            let private = map.extension.map.get("Anonymous").copied().unwrap_or(0);
            footprint.processes += private.min(pss);
            if !held.contains_key(&map.inode) {
                footprint.arenas += pss.saturating_sub(private);
            }
        }
    }
    Ok(footprint)
}

/// CPU time that processes have used, user and system.
///
/// # Errors
/// When a process is gone.
pub fn cpu_time(processes: &[u32]) -> Result<Duration, procfs::ProcError> {
    let per_second = procfs::ticks_per_second();
    let mut ticks = 0;
    for pid in processes {
        let stat = open(*pid)?.stat()?;
        ticks += stat.utime + stat.stime;
    }
    Ok(Duration::from_millis(ticks * 1000 / per_second.max(1)))
}

/// The agents of apps: their own tasks, children of the apps.
#[must_use]
pub fn agents_of(apps: &[u32]) -> Vec<u32> {
    let Ok(all) = procfs::process::all_processes() else {
        return Vec::new();
    };
    all.flatten()
        .filter_map(|process| process.stat().ok())
        .filter(|stat| stat.comm == "ksm-agent")
        .filter(|stat| u32::try_from(stat.ppid).is_ok_and(|parent| apps.contains(&parent)))
        .filter_map(|stat| u32::try_from(stat.pid).ok())
        .collect()
}

fn open(pid: u32) -> Result<Process, procfs::ProcError> {
    Process::new(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// Bytes of each arena that a process has a descriptor of, by inode.
fn arenas_held(process: &Process) -> Result<HashMap<u64, u64>, procfs::ProcError> {
    let mut held = HashMap::new();
    for fd in process.fd()?.flatten() {
        let FDTarget::MemFD(name) = &fd.target else {
            continue;
        };
        if !name.starts_with("ksm-arena") {
            continue;
        }
        let file = format!("/proc/{}/fd/{}", process.pid, fd.fd);
        if let Ok(metadata) = std::fs::metadata(file) {
            held.insert(metadata.ino(), metadata.blocks() * BLOCK);
        }
    }
    Ok(held)
}
