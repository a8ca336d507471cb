//! What a KSM directory says, in words or as JSON. Works on a mounted ksmfs and on the kernel's own directory.

use crate::mountpoint;
use ksm_engine::knobs::KsmFile;
use serde_json::{Map, Value, json};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The kernel's directory.
pub const KERNEL_DIRECTORY: &str = "/sys/kernel/mm/ksm";
const PAGE_SIZE: i64 = 4096;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No directory was named and there is none to be found.
    #[error(
        "no ksmfs is mounted and {KERNEL_DIRECTORY} does not exist; \
         start one (ksmfs mount DIR) or name its directory"
    )]
    NoDirectory,
    /// The directory named is not one.
    #[error(
        "{0}: not a ksm directory: it has no file `run`; name the directory of a mounted ksmfs"
    )]
    NotKsm(PathBuf),
    /// A file cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, io::Error),
}

/// The values of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    directory: PathBuf,
    /// Text of each file that is there (older kernels lack some), without its newline.
    texts: Vec<(KsmFile, String)>,
}

impl Status {
    /// Reads `directory`; without one, a mounted ksmfs, or else the kernel's.
    ///
    /// # Errors
    /// When there is none, or a file cannot be read.
    pub fn read(directory: Option<&Path>) -> Result<Self, StatusError> {
        let directory = match directory {
            Some(directory) => directory.to_owned(),
            None => find_directory()?,
        };
        let mut texts = Vec::new();
        for file in KsmFile::ALL {
            let path = directory.join(file.name());
            match std::fs::read_to_string(&path) {
                Ok(text) => texts.push((file, text.trim_end_matches('\n').to_owned())),
                Err(error) if is_absent(&error) && file == KsmFile::Run => {
                    return Err(StatusError::NotKsm(directory));
                }
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(StatusError::Read(path, error)),
            }
        }
        Ok(Self { directory, texts })
    }

    /// All values, and the sums made of them.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let files = self.texts.iter().map(|(file, text)| {
            let value = match (text.parse::<i64>(), text.parse::<u64>()) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) => number.into(),
                _ => Value::from(text.as_str()),
            };
            (file.name().to_owned(), value)
        });
        json!({
            "directory": self.directory.display().to_string(),
            "saved_bytes": self.saved_bytes(),
            "files": files.collect::<Map<_, _>>(),
        })
    }

    /// Bytes that need no memory because their pages are shared, bookkeeping not subtracted.
    #[must_use]
    pub fn saved_bytes(&self) -> i64 {
        let pages = self.number(KsmFile::PagesSharing) + self.number(KsmFile::ZeroPages);
        pages.saturating_mul(PAGE_SIZE)
    }

    /// The text of a file; empty if it is not there.
    pub(crate) fn text(&self, file: KsmFile) -> &str {
        let found = self.texts.iter().find(|(other, _)| *other == file);
        found.map_or("", |(_, text)| text)
    }

    pub(crate) fn number(&self, file: KsmFile) -> i64 {
        self.text(file).parse().unwrap_or(0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |file| self.number(file);
        let pages = |file| Mib(self.number(file).saturating_mul(PAGE_SIZE));
        let doing = match self.text(KsmFile::Run) {
            "0" => "stopped, merged pages stay",
            "1" => "scanning and merging",
            "2" => "stopped, everything unmerged",
            _ => "in a state of its own",
        };
        let scans = number(KsmFile::FullScans);
        writeln!(
            f,
            "{}: {doing} (run {}), {scans} full scan{}",
            self.directory.display(),
            self.text(KsmFile::Run),
            if scans == 1 { "" } else { "s" },
        )?;
        writeln!(
            f,
            "  saved       {}  {} pages use {} shared ones, {} use the zero page",
            Mib(self.saved_bytes()),
            number(KsmFile::PagesSharing),
            number(KsmFile::PagesShared),
            number(KsmFile::ZeroPages),
        )?;
        writeln!(
            f,
            "  profit      {}  what is left of it after bookkeeping",
            Mib(number(KsmFile::GeneralProfit)),
        )?;
        writeln!(
            f,
            "  unshared    {}  {} pages had no twin when last looked at",
            pages(KsmFile::PagesUnshared),
            number(KsmFile::PagesUnshared),
        )?;
        writeln!(
            f,
            "  volatile    {}  {} pages are new, or change too often",
            pages(KsmFile::PagesVolatile),
            number(KsmFile::PagesVolatile),
        )?;
        writeln!(
            f,
            "  scanned     {}  {} page visits, {} skipped by smart_scan",
            pages(KsmFile::PagesScanned),
            number(KsmFile::PagesScanned),
            number(KsmFile::PagesSkipped),
        )?;
        write!(
            f,
            "  pace        {} pages every {} ms, advisor {}",
            self.text(KsmFile::PagesToScan),
            self.text(KsmFile::SleepMillisecs),
            chosen(self.text(KsmFile::AdvisorMode)),
        )
    }
}

/// Bytes, shown in MiB with two decimals, ten characters wide.
struct Mib(i64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In i128 no number of bytes overflows.
        let size = (i128::from(self.0).abs() * 100 + (1 << 19)) >> 20;
        let hundredths = if self.0 < 0 { -size } else { size };
        let sign = if hundredths < 0 { "-" } else { "" };
        let (whole, rest) = (size / 100, size % 100);
        write!(f, "{:>10} MiB", format!("{sign}{whole}.{rest:02}"))
    }
}

/// The word in brackets of `[none] scan-time`.
fn chosen(modes: &str) -> &str {
    let inside = modes
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("none", |(word, _)| word)
}

fn find_directory() -> Result<PathBuf, StatusError> {
    let mounted = mountpoint::our_mounts().pop();
    let kernel = || Some(PathBuf::from(KERNEL_DIRECTORY)).filter(|path| path.is_dir());
    mounted.or_else(kernel).ok_or(StatusError::NoDirectory)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::{Mib, Status, StatusError, chosen};
    use serde_json::json;
    use std::path::Path;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), format!("{text}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn words_and_json_say_what_the_files_say() {
        let dir = directory(&[
            ("run", "1"),
            ("full_scans", "1"),
            ("pages_shared", "2"),
            ("pages_sharing", "512"),
            ("ksm_zero_pages", "256"),
            ("general_profit", "-1048576"),
            ("advisor_mode", "none [scan-time]"),
            ("advisor_max_pages_to_scan", "18446744073709551615"),
        ]);
        let status = Status::read(Some(dir.path())).unwrap();
        let words = status.to_string();
        assert!(
            words.contains("scanning and merging (run 1), 1 full scan\n"),
            "{words}"
        );
        assert!(
            words.contains("3.00 MiB  512 pages use 2 shared ones, 256 use"),
            "{words}"
        );
        assert!(words.contains("-1.00 MiB"), "{words}");
        assert!(words.ends_with("advisor scan-time"), "{words}");
        let value = status.to_json();
        assert_eq!(value["saved_bytes"], json!(3 << 20));
        assert_eq!(value["files"]["general_profit"], json!(-1_048_576));
        assert_eq!(value["files"]["advisor_max_pages_to_scan"], json!(u64::MAX));
        assert_eq!(value["files"]["advisor_mode"], json!("none [scan-time]"));
        assert_eq!(value["files"].get("smart_scan"), None);
    }

    #[test]
    fn a_directory_without_run_is_no_ksm_directory() {
        let dir = directory(&[]);
        let empty = Status::read(Some(dir.path()));
        assert!(matches!(empty, Err(StatusError::NotKsm(_))));
        let missing = Status::read(Some(Path::new("/nonexistent/ksm")));
        assert!(matches!(missing, Err(StatusError::NotKsm(_))));
    }

    #[test]
    fn sizes_are_rounded_to_hundredths() {
        let shown = |bytes| Mib(bytes).to_string().trim().to_owned();
        assert_eq!(shown(0), "0.00 MiB");
        assert_eq!(shown(1 << 20), "1.00 MiB");
        assert_eq!(shown(-(1 << 20)), "-1.00 MiB");
        assert_eq!(shown(10_486), "0.01 MiB");
        assert_eq!(shown(-10_486), "-0.01 MiB");
        assert_eq!(shown(-100), "0.00 MiB");
        assert_eq!(chosen("[none] scan-time"), "none");
    }
}
