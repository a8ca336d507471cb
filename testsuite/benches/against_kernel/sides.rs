//! Who merges: the kernel or ksmfs, behind the same files.

use super::meters;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use testsuite::daemon::{Daemon, write_knob};
use testsuite::kernel::KernelKsm;

/// How long a benchmark waits for anything.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Merger {
    Ours,
    Kernel,
}

/// A merger that stands still, with the knobs that all benchmarks begin with.
#[derive(Debug)]
pub enum Side<'a> {
    Ours(Daemon),
    Kernel(&'a KernelKsm),
}

impl<'a> Side<'a> {
    /// Starts a daemon, or uses the kernel's.
    pub fn start(kernel: Option<&'a KernelKsm>, kit: &str) -> io::Result<Self> {
        let side = match kernel {
            None => Self::Ours(Daemon::start(kit)),
            Some(kernel) => Self::Kernel(kernel),
        };
        for (knob, value) in [
            ("run", "0"),
            ("max_page_sharing", "256"),
            ("smart_scan", "0"),
            ("use_zero_pages", "0"),
            ("pages_to_scan", "100000"),
            ("sleep_millisecs", "0"),
        ] {
            side.set(knob, value)?;
        }
        Ok(side)
    }

    /// What an app is told about who merges it.
    pub fn word(&self) -> io::Result<String> {
        match self {
            Self::Kernel(_) => Ok("kernel".to_owned()),
            Self::Ours(daemon) => daemon
                .socket()
                .into_os_string()
                .into_string()
                .map_err(|_| io::ErrorKind::InvalidFilename.into()),
        }
    }

    fn directory(&self) -> PathBuf {
        match self {
            Self::Ours(daemon) => daemon.mount(),
            Self::Kernel(kernel) => kernel.path().to_owned(),
        }
    }

    pub fn set(&self, knob: &str, value: &str) -> io::Result<()> {
        write_knob(&self.directory(), knob, value)
            .map_err(|error| io::Error::other(format!("writing {value} to {knob}: {error}")))
    }

    pub fn count(&self, file: &str) -> io::Result<u64> {
        let text = std::fs::read_to_string(self.directory().join(file))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// The daemon, if it is one.
    pub fn daemon(&self) -> Option<u32> {
        match self {
            Self::Ours(daemon) => Some(daemon.pid()),
            Self::Kernel(_) => None,
        }
    }

    /// The processes that do the merging in these apps.
    pub fn tasks(&self, apps: &[u32]) -> io::Result<Vec<u32>> {
        match self {
            Self::Kernel(_) => Ok(vec![meters::ksmd()?]),
            Self::Ours(daemon) => {
                let mut tasks = ksmfs::footprint::agents_of(apps);
                if tasks.len() != apps.len() {
                    return Err(io::Error::other("an app has no agent"));
                }
                tasks.push(daemon.pid());
                Ok(tasks)
            }
        }
    }
}

fn stop() -> &'static Arc<AtomicBool> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    STOP.get_or_init(Arc::default)
}

/// Has a signal end the benchmark in an orderly way: what it started ends, and the kernel's knobs are restored.
pub fn end_on_signals() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(stop()))?;
    }
    Ok(())
}

/// Sleeps.
pub fn pause(time: Duration) -> io::Result<()> {
    std::thread::sleep(time);
    if stop().load(Relaxed) {
        return Err(io::Error::other("interrupted"));
    }
    Ok(())
}

/// Looks every `interval` until `condition` holds; for how long that was.
pub fn until(
    what: &str,
    interval: Duration,
    mut condition: impl FnMut(Duration) -> io::Result<bool>,
) -> io::Result<Duration> {
    let start = Instant::now();
    loop {
        let elapsed = start.elapsed();
        if condition(elapsed)? {
            return Ok(elapsed);
        }
        if elapsed > PATIENCE {
            return Err(io::Error::other(format!("gave up waiting for {what}")));
        }
        pause(interval)?;
    }
}
