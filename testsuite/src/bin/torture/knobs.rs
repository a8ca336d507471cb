//! Knobs turned at random.

use crate::random::Random;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

/// Values that a knob is set to.
const KNOBS: [(&str, &[&str]); 8] = [
    ("run", &["1", "1", "1", "0"]),
    ("pages_to_scan", &["10", "100", "1000", "10000", "100000"]),
    ("sleep_millisecs", &["1", "2", "5", "20"]),
    ("smart_scan", &["0", "1"]),
    ("use_zero_pages", &["0", "1"]),
    ("max_page_sharing", &["2", "3", "8", "256"]),
    ("stable_node_chains_prune_millisecs", &["1", "100", "2000"]),
    ("advisor_mode", &["none", "none", "none", "scan-time"]),
];

pub(crate) struct Knobs {
    directory: PathBuf,
    /// Whether its files are gone now and then, because somebody kills who serves them.
    comes_and_goes: bool,
}

impl Knobs {
    /// The directory that the environment names.
    pub(crate) fn of_environment() -> Result<Self, String> {
        let directory = std::env::var_os("KSM_DIR").ok_or("KSM_DIR is not set")?;
        Ok(Self {
            directory: directory.into(),
            comes_and_goes: std::env::var_os("KSM_DIR_COMES_AND_GOES").is_some(),
        })
    }

    /// Turns one; whether that could be done.
    pub(crate) fn turn(&self, random: &mut Random) -> Result<bool, String> {
        let (knob, values) = random.one_of(&KNOBS);
        let value = random.one_of(values);
        let refused: &[i32] = match knob {
            // While there are merged pages; while the advisor decides.
            "max_page_sharing" => &[libc::EBUSY],
            "pages_to_scan" => &[libc::EINVAL],
            _ => &[],
        };
        self.write(knob, value, refused)
    }

    /// Unmerges everything; whether there was room for all of it. Then merging goes on.
    pub(crate) fn unmerge_all(&self, may_lack_memory: impl Fn() -> bool) -> Result<bool, String> {
        let refused: &[i32] = &[libc::ENOMEM];
        let done = self.put("run", "2");
        let lacked =
            matches!(&done, Err(error) if refused.contains(&error.raw_os_error().unwrap_or(0)));
        if lacked && !may_lack_memory() {
            return Err("run = 2 says that there is no memory".to_owned());
        }
        let done = self.allow("run", "2", done, refused)?;
        self.write("run", "1", &[])?;
        Ok(done)
    }

    /// The number in a file, if the file is there.
    pub(crate) fn number(&self, file: &str) -> Option<i64> {
        let text = std::fs::read_to_string(self.directory.join(file)).ok()?;
        text.trim().parse().ok()
    }

    pub(crate) fn write(&self, knob: &str, value: &str, refused: &[i32]) -> Result<bool, String> {
        self.allow(knob, value, self.put(knob, value), refused)
    }

    fn put(&self, knob: &str, value: &str) -> io::Result<()> {
        // Never made: where a mount is gone an ordinary file would stand in its place.
        let mut file = OpenOptions::new()
            .write(true)
            .open(self.directory.join(knob))?;
        file.write_all(value.as_bytes())
    }

    fn allow(
        &self,
        knob: &str,
        value: &str,
        done: io::Result<()>,
        refused: &[i32],
    ) -> Result<bool, String> {
        const GONE: [i32; 5] = [
            libc::ENOTCONN,
            libc::ECONNABORTED,
            libc::ENOENT,
            libc::ENODEV,
            libc::EIO,
        ];
        match done {
            Ok(()) => Ok(true),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                let gone = self.comes_and_goes && GONE.contains(&errno);
                if gone || refused.contains(&errno) {
                    Ok(false)
                } else {
                    Err(format!("{value} to {knob}: {error}"))
                }
            }
        }
    }
}
