//! The kernel's own KSM, borrowed for a comparison and given back as it was: values, modes, owners and times.
//!
//! One lock file for all tests and benchmarks that use it, so that they take turns.

use super::home::{DEFAULTS, Home};
use ksm_engine::knobs::KsmFile;
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, Stat, Timestamps, Uid};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub const DIRECTORY: &str = "/sys/kernel/mm/ksm";

/// Extended attributes that sequences set, and that root can take away again.
pub const ATTRIBUTES: [&str; 2] = ["trusted.differential", "security.differential"];

/// The kernel counts zero pages of processes that are gone: it loses track of some, and keeps them in its count for ever.
static COUNTS_THE_GONE: AtomicBool = AtomicBool::new(false);

/// Whether what a file says depends on nothing but what is done to it now. Two counters go on since the kernel was
/// started; two more do where it has lost track of zero pages.
pub fn is_comparable(file: KsmFile) -> bool {
    match file {
        KsmFile::PagesScanned | KsmFile::PagesSkipped => false,
        KsmFile::ZeroPages | KsmFile::GeneralProfit => !COUNTS_THE_GONE.load(Ordering::Relaxed),
        _ => true,
    }
}

/// The kernel's KSM with nothing merged and default values. Dropping it restores what was there before.
pub struct KernelKsm {
    values: Vec<(KsmFile, String)>,
    stats: Vec<(PathBuf, Stat)>,
    _lock: File,
}

impl KernelKsm {
    /// Takes it, after whoever has it now. `None` where the kernel has none; with `CI=true` that fails the test.
    pub fn take() -> Option<Self> {
        let directory = Path::new(DIRECTORY);
        if !directory.is_dir() {
            let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!ci, "no KSM in this kernel: nothing was compared");
            say("NOT COMPARED: this kernel has no KSM\n");
            return None;
        }
        let lock = File::create(std::env::temp_dir().join("kernel-ksm.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let home = Home::new(directory);
        let taken = Self {
            values: DEFAULTS.map(|(file, _)| (file, home.value(file))).into(),
            stats: paths()
                .map(|path| {
                    let stat = rustix::fs::stat(&path).unwrap();
                    (path, stat)
                })
                .collect(),
            _lock: lock,
        };
        std::fs::write(directory.join("run"), "2").unwrap();
        for (file, value) in DEFAULTS {
            std::fs::write(directory.join(file.name()), value).unwrap();
        }
        if home.value(KsmFile::ZeroPages) != "0\n" {
            COUNTS_THE_GONE.store(true, Ordering::Relaxed);
            say(
                "NOT COMPARED: ksm_zero_pages and general_profit, for this kernel counts zero pages of the gone\n",
            );
        }
        for file in KsmFile::ALL.into_iter().filter(|file| !file.is_writable()) {
            assert!(
                !is_comparable(file) || home.value(file) == "0\n",
                "{file} is not 0 after an unmerge: somebody else is using the kernel's KSM"
            );
        }
        Some(taken)
    }

    fn restore(&self) -> io::Result<()> {
        for (path, stat) in &self.stats {
            for name in ATTRIBUTES {
                // Most files never had it.
                let _ = rustix::fs::removexattr(path, name);
            }
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::chown(path, Some(uid), Some(gid))?;
            rustix::fs::chmod(path, Mode::from_raw_mode(stat.st_mode))?;
            let time = |tv_sec, nsec: u64| rustix::fs::Timespec {
                tv_sec,
                tv_nsec: nsec.cast_signed(),
            };
            let times = Timestamps {
                last_access: time(stat.st_atime, stat.st_atime_nsec),
                last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
            };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?;
        }
        let directory = Path::new(DIRECTORY);
        // pages_to_scan can be set only while the advisor is off; the advisor and `run` come last.
        std::fs::write(directory.join("advisor_mode"), "none")?;
        for (file, text) in self.values.iter().rev() {
            std::fs::write(directory.join(file.name()), chosen(text))?;
        }
        Ok(())
    }
}

impl Drop for KernelKsm {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("{DIRECTORY} could not be restored: {error}");
        }
    }
}

/// Not by `eprintln!`, which the test runner keeps to itself when a test passes.
fn say(text: &str) {
    io::stderr().write_all(text.as_bytes()).unwrap();
}

fn paths() -> impl Iterator<Item = PathBuf> {
    let directory = Path::new(DIRECTORY);
    std::iter::once(directory.into()).chain(
        KsmFile::ALL
            .into_iter()
            .map(|file| directory.join(file.name())),
    )
}

/// `none [scan-time]` means that `scan-time` is chosen.
fn chosen(text: &str) -> &str {
    text.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or(text.trim(), |(chosen, _)| chosen)
}
