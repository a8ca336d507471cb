//! Where daemon and apps meet: the rule for the path of the socket.
//!
//! In this order: the path somebody gave, the environment variable `KSMFS_SOCKET`, the default. The default is
//! `/run/ksmfs.sock` for root and `$XDG_RUNTIME_DIR/ksmfs.sock` for everybody else. An app that is not root also
//! tries root's daemon, after its own user's.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment variable that names the socket.
pub const VARIABLE: &str = "KSMFS_SOCKET";
/// The socket of root's daemon.
pub const SYSTEM: &str = "/run/ksmfs.sock";

/// There is no path to listen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no socket path: XDG_RUNTIME_DIR is not set; name one with --socket or {VARIABLE}")]
pub struct NoPath;

/// Where a daemon listens.
///
/// # Errors
/// When nobody named a path and the user has no run-time directory.
pub fn listen_path(explicit: Option<&Path>) -> Result<PathBuf, NoPath> {
    Surroundings::here()
        .candidates(explicit)
        .into_iter()
        .next()
        .filter(|path| explicit.is_some() || !is_fallback(path))
        .ok_or(NoPath)
}

/// Where an app looks for a daemon, in this order. One or two paths.
#[must_use]
pub fn connect_paths(explicit: Option<&Path>) -> Vec<PathBuf> {
    Surroundings::here().candidates(explicit)
}

fn is_fallback(path: &Path) -> bool {
    let here = Surroundings::here();
    !here.root && here.variable.is_none() && path == Path::new(SYSTEM)
}

/// What the rule depends on.
struct Surroundings {
    root: bool,
    variable: Option<OsString>,
    runtime_dir: Option<OsString>,
}

impl Surroundings {
    fn here() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        Self {
            root: rustix::process::geteuid().is_root(),
            variable: set(VARIABLE),
            runtime_dir: set("XDG_RUNTIME_DIR"),
        }
    }

    fn candidates(&self, explicit: Option<&Path>) -> Vec<PathBuf> {
        if let Some(path) = explicit.or(self.variable.as_deref().map(Path::new)) {
            return vec![path.to_owned()];
        }
        let mut paths = Vec::new();
        if let (false, Some(dir)) = (self.root, &self.runtime_dir) {
            paths.push(Path::new(dir).join("ksmfs.sock"));
        }
        paths.push(PathBuf::from(SYSTEM));
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Surroundings {
        Surroundings {
            root: false,
            variable: None,
            runtime_dir: Some("/run/user/7".into()),
        }
    }

    fn paths(surroundings: &Surroundings, explicit: Option<&str>) -> Vec<String> {
        surroundings
            .candidates(explicit.map(Path::new))
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn a_given_path_wins_over_everything() {
        let here = Surroundings {
            variable: Some("/v".into()),
            ..user()
        };
        assert_eq!(paths(&here, Some("/given")), ["/given"]);
        assert_eq!(paths(&here, None), ["/v"]);
    }

    #[test]
    fn a_user_tries_his_own_daemon_then_roots() {
        assert_eq!(
            paths(&user(), None),
            ["/run/user/7/ksmfs.sock", "/run/ksmfs.sock"]
        );
        let bare = Surroundings {
            runtime_dir: None,
            ..user()
        };
        assert_eq!(paths(&bare, None), ["/run/ksmfs.sock"]);
    }

    #[test]
    fn root_has_one_place() {
        let here = Surroundings {
            root: true,
            ..user()
        };
        assert_eq!(paths(&here, None), ["/run/ksmfs.sock"]);
    }
}
