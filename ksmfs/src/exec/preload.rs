//! The library for unmodified programs: where it is, and the variable that has the dynamic linker load it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the dynamic linker reads.
pub(super) const VARIABLE: &str = "LD_PRELOAD";
/// Names the library, for a program that was moved away from it.
const OVERRIDE: &str = "KSMFS_PRELOAD";
const FILE: &str = "libksm_preload.so";
/// Where it is, seen from the program's directory: as built with the program (also copied beside it, but by few of the
/// ways to build it, so that the copy may be old), beside it, as installed.
const PLACES: [&str; 4] = ["deps", ".", "../lib/ksmfs", "../lib"];

/// Why it cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PreloadError {
    /// It is not there.
    #[error(
        "{FILE} is missing (looked for {0}): build it with `cargo build --release`, name it with --preload or {OVERRIDE}, or do without merging (--no-preload)"
    )]
    Missing(String),
    /// The dynamic linker would take the path for several.
    #[error(
        "{0}: the dynamic linker splits {VARIABLE} at blanks and colons: move the library elsewhere"
    )]
    Unspeakable(PathBuf),
}

/// The value of the variable that has the library loaded before whatever is loaded already.
pub(super) fn variable(explicit: Option<&Path>) -> Result<OsString, PreloadError> {
    let named = explicit.map(PathBuf::from).or_else(|| {
        let set = env::var_os(OVERRIDE).filter(|path| !path.is_empty());
        set.map(PathBuf::from)
    });
    let program = env::current_exe().unwrap_or_default();
    let directory = program.parent().unwrap_or(Path::new("/"));
    let library = find(named, directory)?;
    prepend(&library, env::var_os(VARIABLE).as_deref())
}

/// The library somebody named, or the first of the usual places around the program.
fn find(named: Option<PathBuf>, directory: &Path) -> Result<PathBuf, PreloadError> {
    let places = match named {
        Some(path) => vec![path],
        None => PLACES
            .iter()
            .map(|place| directory.join(place).join(FILE))
            .collect(),
    };
    // The whole path without links: the command may change its directory.
    let found = places.iter().find_map(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        let shown: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
        PreloadError::Missing(shown.join(", "))
    })
}

fn prepend(library: &Path, list: Option<&OsStr>) -> Result<OsString, PreloadError> {
    let separates = |byte: &u8| byte.is_ascii_whitespace() || *byte == b':';
    let own = library.as_os_str();
    if own.as_bytes().iter().any(separates) {
        return Err(PreloadError::Unspeakable(library.into()));
    }
    let mut value = own.to_owned();
    if let Some(list) = list.filter(|list| !list.is_empty()) {
        let mut parts = list.as_bytes().split(|byte| separates(byte));
        if parts.any(|part| part == own.as_bytes()) {
            return Ok(list.to_owned());
        }
        value.push(":");
        value.push(list);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{FILE, PreloadError, find, prepend};
    use std::ffi::OsStr;
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_library_comes_first_and_once() {
        let with = |list: Option<&str>| {
            let value = prepend(Path::new("/l.so"), list.map(OsStr::new)).unwrap();
            value.into_string().unwrap()
        };
        assert_eq!(with(None), "/l.so");
        assert_eq!(with(Some("")), "/l.so");
        assert_eq!(with(Some("/a.so b.so")), "/l.so:/a.so b.so");
        assert_eq!(with(Some("/a.so:/l.so")), "/a.so:/l.so");
    }

    #[test]
    fn a_path_that_the_linker_would_split_is_refused() {
        for path in ["/a b/l.so", "/a:b/l.so"] {
            let refused = prepend(Path::new(path), None);
            assert!(matches!(refused, Err(PreloadError::Unspeakable(_))));
        }
    }

    #[test]
    fn the_library_is_found_around_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        assert!(matches!(find(None, &bin), Err(PreloadError::Missing(_))));
        // From the last place that is looked at to the first.
        for place in ["lib", "lib/ksmfs", "bin", "bin/deps"] {
            let home = dir.path().join(place);
            fs::create_dir_all(&home).unwrap();
            fs::write(home.join(FILE), "").unwrap();
            let wanted = home.join(FILE).canonicalize().unwrap();
            assert_eq!(find(None, &bin).unwrap(), wanted);
        }
        let named = find(Some("/nonexistent.so".into()), &bin);
        assert!(
            matches!(named, Err(PreloadError::Missing(_))),
            "no second choice"
        );
    }
}
