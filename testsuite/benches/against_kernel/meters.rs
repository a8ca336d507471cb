//! What the kernel says about time and memory.

use procfs::{Current, CurrentSI};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Memory is at rest when it changes by no more than this meanwhile.
const STILL: i64 = 256 << 10;
const MOST_RESTS: u32 = 10;

/// Busy seconds of all CPUs since boot, in the kernel's ticks.
pub fn busy() -> io::Result<f64> {
    let total = procfs::KernelStats::current()
        .map_err(io::Error::other)?
        .total;
    let ticks = total.user
        + total.nice
        + total.system
        + total.irq.unwrap_or(0)
        + total.softirq.unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "seconds since boot")]
    let seconds = ticks as f64 / procfs::ticks_per_second() as f64;
    Ok(seconds)
}

/// Seconds that all tasks of these processes were on a CPU, to the nanosecond.
pub fn on_cpu(processes: &[u32]) -> io::Result<f64> {
    let mut nanoseconds = 0u64;
    for pid in processes {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().unwrap_or("");
            nanoseconds += first.parse::<u64>().map_err(io::Error::other)?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
}

/// The kernel's own merger.
pub fn ksmd() -> io::Result<u32> {
    for process in procfs::process::all_processes().map_err(io::Error::other)? {
        let stat = process.and_then(|process| process.stat());
        if let Ok(stat) = stat
            && stat.comm == "ksmd"
        {
            return u32::try_from(stat.pid).map_err(io::Error::other);
        }
    }
    Err(io::Error::other("no process ksmd"))
}

/// Bytes of memory that processes have, and the kernel for them, once they do not change any more; waits for twice as long as
/// `time` at most.
///
/// Not `MemAvailable`: freed memory comes back into it at some 20 MiB a second on some machines, with nothing at work.
pub fn in_use(time: Duration, pause: impl Fn(Duration) -> io::Result<()>) -> io::Result<i64> {
    let mut before = Memory::now()?.in_use;
    for _ in 0..MOST_RESTS {
        pause(time / 5)?;
        let now = Memory::now()?.in_use;
        if (now - before).abs() <= STILL {
            return Ok(now);
        }
        before = now;
    }
    Ok(before)
}

/// Memory of the kernel's own objects in bytes.
pub fn slab() -> io::Result<i64> {
    Ok(Memory::now()?.slab)
}

/// Bytes, of the whole machine.
struct Memory {
    in_use: i64,
    slab: i64,
}

impl Memory {
    fn now() -> io::Result<Self> {
        // Has every CPU hand in what it counted for itself; only root may.
        let _ = std::fs::read(Path::new("/proc/sys/vm/stat_refresh"));
        let info = procfs::Meminfo::current().map_err(io::Error::other)?;
        let slab = info.s_unreclaim.unwrap_or(0);
        let of_processes = [info.anon_pages, info.shmem, info.page_tables];
        let in_use = slab + of_processes.into_iter().flatten().sum::<u64>();
        Ok(Self {
            in_use: in_use.cast_signed(),
            slab: slab.cast_signed(),
        })
    }
}

/// Anonymous memory of a process in bytes, arenas not counted.
pub fn own_memory(pid: u32) -> io::Result<u64> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let maps = procfs::process::Process::new(pid)
        .and_then(|process| process.smaps())
        .map_err(io::Error::other)?;
    Ok(maps
        .iter()
        .filter(|map| !ksmfs::footprint::is_arena(map))
        .filter_map(|map| map.extension.map.get("Anonymous"))
        .sum())
}
