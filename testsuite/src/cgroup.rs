//! A memory cgroup of a test's own, version 1 or 2, whichever the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A memory cgroup; it must be empty again when it is dropped.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// What has the kernel take back memory when something is written to it.
    reclaim: &'static str,
    /// Where it says how many processes were killed for want of memory.
    events: &'static str,
}

impl MemoryGroup {
    /// Makes a group without a limit.
    ///
    /// # Errors
    /// When the machine has no memory controller, or this process may not use it.
    pub fn create(name: &str) -> io::Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (path, limit, usage, reclaim, events) = if v1.join("tasks").exists() {
            (
                v1.join(name),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "memory.force_empty",
                "memory.oom_control",
            )
        } else {
            let top = Path::new("/sys/fs/cgroup");
            fs::write(top.join("cgroup.subtree_control"), "+memory")?;
            (
                top.join(name),
                "memory.max",
                "memory.current",
                "memory.reclaim",
                "memory.events",
            )
        };
        fs::create_dir(&path)?;
        let group = Self {
            path,
            limit,
            usage,
            reclaim,
            events,
        };
        group.usage().map(|_| group)
    }

    /// Moves a process here. What it has already stays accounted where it was.
    ///
    /// # Errors
    /// As the kernel.
    pub fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Bytes in use.
    ///
    /// # Errors
    /// As reading the file.
    pub fn usage(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.path.join(self.usage))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// Limits the bytes in use.
    ///
    /// # Errors
    /// As the kernel.
    pub fn limit(&self, bytes: u64) -> io::Result<()> {
        fs::write(self.path.join(self.limit), bytes.to_string())
    }

    /// Processes that were killed here because there was no more memory.
    ///
    /// # Errors
    /// As reading the file.
    pub fn oom_kills(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.path.join(self.events))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let count = count.ok_or(io::ErrorKind::NotFound)?;
        count.trim().parse().map_err(io::Error::other)
    }

    /// Has the kernel take back what it can: page cache, and memory that was given away (`MADV_FREE`).
    ///
    /// # Errors
    /// As the kernel, also when it could not take back as much as it was asked to.
    pub fn reclaim(&self) -> io::Result<()> {
        fs::write(self.path.join(self.reclaim), "64M")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The processes in it have been ended; the kernel may need a moment to see that.
        for _ in 0..200 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
