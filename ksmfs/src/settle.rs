//! Waiting until merging has come to rest: the counters are the same after so many full scans.
//!
//! Goes by the files alone, so it works on the kernel's directory as well.

use crate::status::{Status, StatusError};
use ksm_engine::knobs::KsmFile;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// What has to stand still.
const COUNTERS: [KsmFile; 5] = [
    KsmFile::PagesShared,
    KsmFile::PagesSharing,
    KsmFile::PagesUnshared,
    KsmFile::PagesVolatile,
    KsmFile::ZeroPages,
];

/// Why it is not known to have settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The files cannot be read.
    #[error("{0}")]
    Status(#[from] StatusError),
    /// Nobody scans.
    #[error("nothing is being scanned: run is {0}; write 1 to it")]
    NotScanning(String),
    /// It took too long.
    #[error("the counters have not settled in {0:?}")]
    TimedOut(Duration),
}

/// Waits until the counters are the same after `scans` full scans in a row as before them.
///
/// # Errors
/// When nobody scans, or not within `patience`.
pub fn settle(
    directory: Option<&Path>,
    scans: u64,
    patience: Option<Duration>,
) -> Result<Status, SettleError> {
    let began = Instant::now();
    let mut since = Status::read(directory)?;
    loop {
        let now = Status::read(directory)?;
        if now.text(KsmFile::Run) != "1" {
            return Err(SettleError::NotScanning(now.text(KsmFile::Run).to_owned()));
        }
        let same = |file: &KsmFile| now.text(*file) == since.text(*file);
        let passed = now.number(KsmFile::FullScans) - since.number(KsmFile::FullScans);
        if !COUNTERS.iter().all(same) || passed < 0 {
            since = now;
        } else if u64::try_from(passed).is_ok_and(|passed| passed >= scans) {
            return Ok(now);
        }
        if let Some(patience) = patience.filter(|patience| began.elapsed() >= *patience) {
            return Err(SettleError::TimedOut(patience));
        }
        std::thread::sleep(LOOK);
    }
}
