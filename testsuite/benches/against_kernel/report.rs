//! What was measured, as it is kept in a file.

use super::figures::Samples;
use super::latency::Percentiles;
use super::side_channels::Finding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Cases by name.
    pub cases: BTreeMap<String, Samples>,
    /// Rounds by who merges.
    pub latency: BTreeMap<String, Vec<Percentiles>>,
    pub side_channels: Vec<Finding>,
}

impl Report {
    /// The file's, or a new one if there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read, or is no report.
    pub fn load(file: &Path) -> io::Result<Self> {
        match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        std::fs::write(file, serde_json::to_vec_pretty(self)?)
    }
}
