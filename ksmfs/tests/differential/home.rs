//! Descriptors of all files that stay open: what the files say between sequences, and bringing them back to the
//! defaults, whatever a sequence did to values, modes and owners.

use super::kernel::{ATTRIBUTES, is_comparable};
use super::operation::{Operation, PathCall, Step, Target};
use super::side::Side;
use ksm_engine::knobs::KsmFile;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Knobs and the values they begin with, in an order in which they can be written: the advisor decides about
/// `pages_to_scan`, so it is sent away first.
pub const DEFAULTS: [(KsmFile, &str); 13] = [
    (KsmFile::Run, "0"),
    (KsmFile::AdvisorMode, "none"),
    (KsmFile::AdvisorMaxCpu, "70"),
    (KsmFile::AdvisorMinPagesToScan, "500"),
    (KsmFile::AdvisorMaxPagesToScan, "30000"),
    (KsmFile::AdvisorTargetScanTime, "200"),
    (KsmFile::MaxPageSharing, "256"),
    (KsmFile::MergeAcrossNodes, "1"),
    (KsmFile::PagesToScan, "100"),
    (KsmFile::SleepMillisecs, "20"),
    (KsmFile::SmartScan, "1"),
    (KsmFile::PruneMillisecs, "2000"),
    (KsmFile::UseZeroPages, "0"),
];

/// Kept descriptors, in the order of [`KsmFile::ALL`].
pub struct Home {
    files: Vec<(KsmFile, OwnedFd)>,
}

impl Home {
    pub fn new(root: &Path) -> Self {
        let open = |file: KsmFile| {
            let access = if file.is_writable() {
                OFlags::RDWR
            } else {
                OFlags::RDONLY
            };
            let path = root.join(file.name());
            let kept = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty());
            (file, kept.unwrap())
        };
        Self {
            files: KsmFile::ALL.into_iter().map(open).collect(),
        }
    }

    fn descriptor(&self, file: KsmFile) -> &OwnedFd {
        let mut files = self.files.iter();
        let kept = files.find(|(kept, _)| *kept == file);
        &kept.expect("all files are kept").1
    }

    pub fn value(&self, file: KsmFile) -> String {
        let mut text = [0; 64];
        let len = rustix::io::pread(self.descriptor(file), &mut text, 0).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    }

    /// All values that do not depend on what else this kernel did since it was started.
    pub fn values(&self) -> Vec<(KsmFile, String)> {
        let files = self.files.iter().map(|(file, _)| *file);
        files
            .filter(|file| is_comparable(*file))
            .map(|file| (file, self.value(file)))
            .collect()
    }

    /// Undoes what a sequence did.
    pub fn tidy(&self, side: &mut Side, steps: &[Step], values: &[(KsmFile, String)]) {
        side.close_all();
        for step in steps {
            let target = match step.operation {
                Operation::At {
                    target,
                    call: PathCall::SetAttribute { .. },
                } => target,
                _ => continue,
            };
            for name in ATTRIBUTES {
                // Most were refused.
                let _ = rustix::fs::removexattr(side.path(target), name);
            }
        }
        let files = KsmFile::ALL.map(Target::File).into_iter();
        for target in files.chain([Target::Directory]) {
            let path = side.path(target);
            let stat = rustix::fs::stat(&path).unwrap();
            let wanted = match target {
                Target::Directory => 0o755,
                Target::File(file) if !file.is_writable() => 0o444,
                _ => 0o644,
            };
            if (stat.st_uid, stat.st_gid) != (0, 0) {
                rustix::fs::chown(&path, Some(Uid::ROOT), Some(Gid::ROOT)).unwrap();
            }
            if stat.st_mode & 0o7777 != wanted {
                rustix::fs::chmod(&path, Mode::from_raw_mode(wanted)).unwrap();
            }
        }
        let differs = |(file, default): &(KsmFile, &str)| {
            let mut texts = values.iter();
            !texts.any(|(named, text)| named == file && text.trim_end() == *default)
        };
        // A change of the advisor's mode changes pages_to_scan as well: that is written in any case then.
        let advised = values.iter().any(|(_, text)| text == "none [scan-time]\n");
        for (file, default) in DEFAULTS {
            if differs(&(file, default)) || (advised && file == KsmFile::PagesToScan) {
                rustix::io::pwrite(self.descriptor(file), default.as_bytes(), 0).unwrap();
            }
        }
    }
}
