//! An app that uses up what merging needs: maps, descriptors, address space.

use std::fs::File;

/// Maps that a program may need to answer a question.
const OWN_NEEDS: usize = 200;

/// What was taken, until it is let go.
#[derive(Default)]
pub(crate) struct Hoard {
    maps: Vec<testsuite::sys::OnePage>,
    files: Vec<File>,
}

impl Hoard {
    /// Maps single pages until the kernel refuses, then gives some back for this program's own needs; returns how many
    /// are left.
    pub(crate) fn maps(&mut self) -> Result<usize, String> {
        // Neighbours of equal protection would be one map: every other page is read-only.
        while let Ok(page) = testsuite::sys::OnePage::map(self.maps.len().is_multiple_of(2)) {
            self.maps.push(page);
        }
        self.maps
            .truncate(self.maps.len().saturating_sub(OWN_NEEDS));
        Ok(self.maps.len())
    }

    /// Opens descriptors until the kernel refuses; returns how many.
    pub(crate) fn descriptors(&mut self) -> Result<usize, String> {
        while let Ok(file) = File::open("/dev/null") {
            self.files.push(file);
        }
        Ok(self.files.len())
    }

    /// Gives everything back.
    pub(crate) fn let_go(&mut self) {
        self.maps.clear();
        self.files.clear();
    }
}

/// Limits the address space to what is in use now.
pub(crate) fn limit_address_space() -> Result<String, String> {
    let used = procfs::process::Process::myself()
        .and_then(|process| process.status())
        .map_err(|e| e.to_string())?
        .vmsize
        .ok_or("no VmSize")?
        * 1024;
    let limit = rustix::process::Rlimit {
        current: Some(used),
        maximum: Some(used),
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).map_err(|e| e.to_string())?;
    Ok(used.to_string())
}
