//! An app that tries to change the merged pages it maps.

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::path::PathBuf;

/// Tries every way to write to each mapped arena; returns how many arenas were tried.
///
/// # Errors
/// When any way worked.
pub(crate) fn arenas() -> Result<usize, String> {
    let maps = procfs::process::Process::myself()
        .and_then(|process| process.maps())
        .map_err(|e| e.to_string())?;
    let mut tried = 0;
    for map in maps.iter().filter(|map| ksmfs::footprint::is_arena(map)) {
        let (start, end) = map.address;
        let file = PathBuf::from(format!("/proc/self/map_files/{start:x}-{end:x}"));
        // Without the privilege to open map_files there is no way in at all.
        match rustix::fs::open(&file, OFlags::RDWR, Mode::empty()) {
            Ok(file) => attack(&file)?,
            Err(Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(format!("open {}: {error}", file.display())),
        }
        tried += 1;
    }
    Ok(tried)
}

fn attack(file: &rustix::fd::OwnedFd) -> Result<(), String> {
    let refused = |what: &str, result: Result<(), Errno>| match result {
        Err(Errno::PERM | Errno::ACCESS) => Ok(()),
        Err(error) => Err(format!("{what}: unexpected {error}")),
        Ok(()) => Err(format!("{what} worked")),
    };
    refused("pwrite", rustix::io::pwrite(file, b"x", 0).map(|_| ()))?;
    refused("ftruncate", rustix::fs::ftruncate(file, 0))?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    refused(
        "punching a hole",
        rustix::fs::fallocate(file, punch, 0, 4096),
    )?;
    refused("growing", rustix::fs::ftruncate(file, 1 << 40))?;
    refused(
        "mapping shared and writable",
        testsuite::sys::map_shared_writable(file),
    )
}
