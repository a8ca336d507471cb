//! The kernel's own KSM, borrowed for a test or benchmark and given back as it was.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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

/// Ends when its standard input does, that is when nobody holds the other end of the pipe any more; then writes each
/// value to its file.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP QUIT
while read -r _; do :; done
cd "$0" || exit
failed=0
while [ $# -gt 1 ]; do
    echo "$2" >"$1" || failed=1
    shift 2
done
exit $failed
"#;

/// The kernel's KSM with all pages unmerged, for one user at a time. Dropping it restores all knobs, and so does the
/// end of this process, however it comes.
#[derive(Debug)]
pub struct KernelKsm {
    guardian: Child,
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
        let guardian = guardian(lock, restoring(&knobs()?))?;
        let taken = Self { guardian };
        taken.write("run", "2")?;
        taken.write("run", "0")?;
        taken.write("advisor_mode", "none")?;
        Ok(taken)
    }

    /// The knobs and their values now.
    ///
    /// # Errors
    /// When there is no KSM.
    pub fn knobs() -> io::Result<Vec<(&'static str, String)>> {
        knobs()
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

/// Older kernels, and those without NUMA, lack some.
fn knobs() -> io::Result<Vec<(&'static str, String)>> {
    let mut knobs = Vec::new();
    for knob in KNOBS {
        match std::fs::read_to_string(Path::new(DIRECTORY).join(knob)) {
            Ok(text) => knobs.push((knob, chosen(&text).to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && knob != "run" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(knobs)
}

/// What has to be written, in order, for the knobs to be as they were.
fn restoring(before: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let has_advisor = |(knob, value): &(&str, String)| *knob == "advisor_mode" && value != "none";
    let advised = before.iter().any(has_advisor);
    let mut writes = vec![("run", "2".to_owned()), ("run", "0".to_owned())];
    // pages_to_scan is the advisor's while it is on.
    writes.extend(
        before
            .iter()
            .filter(|(knob, _)| !(advised && *knob == "pages_to_scan"))
            .cloned(),
    );
    writes
}

/// The process that restores. It holds the lock until it has, and no signal from a terminal reaches it.
fn guardian(lock: File, writes: Vec<(&'static str, String)>) -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", GUARDIAN, DIRECTORY])
        .args(
            writes
                .into_iter()
                .flat_map(|(knob, value)| [knob.to_owned(), value]),
        )
        .stdin(Stdio::piped())
        .stdout(lock)
        .process_group(0)
        .spawn()
}

/// `none [scan-time]` means that `scan-time` is chosen.
fn chosen(text: &str) -> &str {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text.trim(), |(chosen, _)| chosen)
}

impl Drop for KernelKsm {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        match self.guardian.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("the kernel's KSM is not as it was before: {other:?}"),
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

    #[test]
    fn the_advisors_own_knob_is_left_to_it() {
        let knobs = |mode: &str| {
            vec![
                ("advisor_mode", mode.to_owned()),
                ("pages_to_scan", "7".to_owned()),
            ]
        };
        let restores = |mode| {
            restoring(&knobs(mode))
                .iter()
                .any(|(knob, _)| *knob == "pages_to_scan")
        };
        assert!(restores("none"));
        assert!(!restores("scan-time"));
    }
}
