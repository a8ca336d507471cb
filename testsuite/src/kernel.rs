//! The kernel's own KSM, borrowed for a test or benchmark and given back as it was.

use std::fs::File;
use std::io;
use std::path::Path;

const DIRECTORY: &str = "/sys/kernel/mm/ksm";

/// In an order in which they can be written: `run` stands still first, the advisor decides about `pages_to_scan`.
const KNOBS: [&str; 13] = [
    "advisor_mode",
    "advisor_max_cpu",
    "advisor_min_pages_to_scan",
    "advisor_max_pages_to_scan",
    "advisor_target_scan_time",
    "max_page_sharing",
    "merge_across_nodes",
    "pages_to_scan",
    "sleep_millisecs",
    "smart_scan",
    "stable_node_chains_prune_millisecs",
    "use_zero_pages",
    "run",
];

/// The kernel's KSM with all pages unmerged, for one user at a time. Dropping it restores all knobs.
#[derive(Debug)]
pub struct KernelKsm {
    before: Vec<(&'static str, String)>,
    _lock: File,
}

impl KernelKsm {
    /// Whether the kernel has KSM.
    #[must_use]
    pub fn exists() -> bool {
        Path::new(DIRECTORY).is_dir()
    }

    /// Takes it, after whoever has it now. Unmerges everything and stops the scanning.
    ///
    /// # Errors
    /// When the kernel has none, or this process may not use it.
    pub fn take() -> io::Result<Self> {
        let lock = File::create(std::env::temp_dir().join("kernel-ksm.lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        let mut before = Vec::new();
        for knob in KNOBS {
            let text = std::fs::read_to_string(Path::new(DIRECTORY).join(knob))?;
            before.push((knob, chosen(&text).to_owned()));
        }
        let taken = Self {
            before,
            _lock: lock,
        };
        taken.write("run", "2")?;
        taken.write("run", "0")?;
        Ok(taken)
    }

    /// Writes a knob.
    ///
    /// # Errors
    /// As the kernel.
    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        std::fs::write(self.path().join(file), value)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &'static Path {
        Path::new(DIRECTORY)
    }
}

/// `none [scan-time]` means that `scan-time` is chosen.
fn chosen(text: &str) -> &str {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text.trim(), |(chosen, _)| chosen)
}

impl Drop for KernelKsm {
    fn drop(&mut self) {
        for (knob, value) in [("run", "2"), ("run", "0"), ("advisor_mode", "none")] {
            let _ = self.write(knob, value);
        }
        for (knob, value) in &self.before {
            // pages_to_scan is the advisor's while it is on.
            if let Err(error) = self.write(knob, value)
                && *knob != "pages_to_scan"
            {
                eprintln!("restoring {knob} to {value}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_mode_is_found() {
        assert_eq!(chosen("none [scan-time]\n"), "scan-time");
        assert_eq!(chosen("100\n"), "100");
    }
}
