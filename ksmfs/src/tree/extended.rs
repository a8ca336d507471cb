//! Extended attributes, as sysfs has them: root may keep any in `trusted` and `security`, nobody in `user`.
//!
//! Whether the caller may was checked by the kernel; what is left is which names there can be.

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The extended attributes of one file, in the order in which they are listed.
#[derive(Debug, Default)]
pub struct ExtendedAttributes(BTreeMap<OsString, Vec<u8>>);

/// Prefixes of the names that can be kept.
const KEPT: [&str; 2] = ["security.", "trusted."];
/// Prefix of the names that can be asked for but never are there.
const UNKEPT: &str = "user.";
/// Prefix of the names that only the privileged see listed.
const HIDDEN: &[u8] = b"trusted.";

fn check(name: &OsStr, prefixes: &[&str]) -> Result<(), Errno> {
    let name = name.as_bytes();
    let rest = prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix.as_bytes()));
    match rest {
        None => Err(Errno::OPNOTSUPP),
        Some([]) => Err(Errno::INVAL),
        Some(_) => Ok(()),
    }
}

impl ExtendedAttributes {
    /// The value of an attribute.
    ///
    /// # Errors
    /// ENODATA where there is none, EOPNOTSUPP or EINVAL for a name that cannot be.
    pub fn get(&self, name: &OsStr) -> Result<&[u8], Errno> {
        check(name, &[KEPT[0], KEPT[1], UNKEPT])?;
        self.0.get(name).map(Vec::as_slice).ok_or(Errno::NODATA)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// EEXIST and ENODATA as `flags` ask, EOPNOTSUPP or EINVAL for a name that cannot be.
    pub fn set(&mut self, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
        check(name, &KEPT)?;
        let exists = self.0.contains_key(name);
        if exists && flags.contains(XattrFlags::CREATE) {
            return Err(Errno::EXIST);
        }
        if !exists && flags.contains(XattrFlags::REPLACE) {
            return Err(Errno::NODATA);
        }
        self.0.insert(name.into(), value.into());
        Ok(())
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// ENODATA where there is none, EOPNOTSUPP or EINVAL for a name that cannot be.
    pub fn remove(&mut self, name: &OsStr) -> Result<(), Errno> {
        check(name, &KEPT)?;
        self.0.remove(name).map(drop).ok_or(Errno::NODATA)
    }

    /// All names, each with a NUL after it, as `listxattr` gives them.
    #[must_use]
    pub fn list(&self, privileged: bool) -> Vec<u8> {
        let names = self.0.keys().map(|name| name.as_bytes());
        names
            .filter(|name| privileged || !name.starts_with(HIDDEN))
            .flat_map(|name| [name, b"\0"].concat())
            .collect()
    }
}
