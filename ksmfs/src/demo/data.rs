//! Real data: files that every machine has.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where programs and libraries are.
const PLACES: [&str; 4] = ["/usr/lib", "/usr/bin", "/usr/share", "/opt"];
/// Files below this size would be more padding than data.
const SMALLEST: u64 = 16 << 10;
/// One file is not to be most of the data.
const LARGEST: u64 = 16 << 20;
/// Directories are not followed deeper than this.
const DEPTH: usize = 8;

/// Files of at least `bytes` in all, the largest first, if the machine has as many.
pub(super) fn real_files(bytes: u64) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in PLACES {
        collect(Path::new(place), DEPTH, &mut found);
    }
    found.sort_by(|a, b| b.cmp(a));
    let mut sum = 0;
    let mut files = Vec::new();
    for (size, path) in found {
        if sum >= bytes {
            break;
        }
        sum += size;
        files.push(path);
    }
    files
}

fn collect(place: &Path, depth: usize, found: &mut Vec<(u64, PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        // Does not follow symbolic links, so nothing is found twice.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() && depth > 0 {
            collect(&entry.path(), depth - 1, found);
        } else if metadata.is_file() && (SMALLEST..=LARGEST).contains(&metadata.size()) {
            found.push((metadata.size(), entry.path()));
        }
    }
}
