//! Which processes may have pages in common: the administrator's word, from a file.
//!
//! Without one, a domain is a user. A policy can divide users, join them, or keep processes out. What it decides on is
//! what the kernel vouches for: the uid and the cgroup of the process that connects. A label is a mere wish of the process,
//! and counts only where the policy allows it to be wished.

mod parse;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

pub use parse::{Problem, SyntaxError};

/// Says for each process which domain it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    base: Base,
    /// Who shares one domain, whatever user he is.
    merges: Vec<Vec<Who>>,
    /// Who is never merged.
    never: Vec<Who>,
    /// Labels, and who may have them.
    labels: Vec<(String, Vec<Who>)>,
}

/// What is a domain where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Base {
    /// All processes of a user.
    #[default]
    User,
    /// All processes of a user in one cgroup.
    Cgroup,
    /// Nothing: nobody is merged.
    None,
}

/// Some processes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Any,
    Users(RangeInclusive<u32>),
    /// Those in this cgroup, and in those below.
    Cgroup(String),
}

/// What is known of a process.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its user.
    pub uid: u32,
    /// Its cgroup (of version 2), if that is known.
    pub cgroup: Option<&'a str>,
    /// The label that it asks for; empty for none.
    pub label: &'a str,
}

/// A domain, by what makes it one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// All processes of a user that are in no other one.
    User(u32),
    /// Of a user in a cgroup.
    Cgroup(u32, String),
    /// Those of the `merge` line with this place among its kind.
    Merged(usize),
    /// Those with a label.
    Label(String),
}

/// Why a process is in no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It is not to be merged.
    Never,
    /// It may not have the label that it asks for.
    Label,
    /// Its cgroup matters and is not known.
    NoCgroup,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file could not be read.
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// Somebody else could change it.
    #[error("{0}: must belong to root or to the daemon's user, and be writable by nobody else")]
    Unsafe(PathBuf),
    /// It is not well-formed.
    #[error("{}", Located(.0, .1))]
    Syntax(PathBuf, Vec<SyntaxError>),
}

/// Errors as compilers print them: file, line, what is wrong.
struct Located<'a>(&'a Path, &'a [SyntaxError]);

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, SyntaxError { line, problem }) in self.1.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{line}: {problem}", self.0.display())?;
        }
        Ok(())
    }
}

impl Policy {
    /// Reads a policy from a file that nobody but root and the daemon's user can have written.
    ///
    /// # Errors
    /// When it cannot be read, is not to be trusted, or is not well-formed.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        use std::io::Read;
        use std::os::unix::fs::MetadataExt;
        let read = |error| PolicyError::Read(path.into(), error);
        let mut file = std::fs::File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        let own = rustix::process::geteuid().as_raw();
        let trusted = metadata.uid() == 0 || metadata.uid() == own;
        if !trusted || metadata.mode() & 0o022 != 0 {
            return Err(PolicyError::Unsafe(path.into()));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(read)?;
        text.parse()
            .map_err(|errors| PolicyError::Syntax(path.into(), errors))
    }

    /// The domain of a process.
    ///
    /// # Errors
    /// When it is in none.
    pub fn domain_of(&self, subject: Subject<'_>) -> Result<Domain, Outside> {
        if subject.cgroup.is_none() && self.asks_for_cgroups() {
            return Err(Outside::NoCgroup);
        }
        if matches(&self.never, subject) {
            return Err(Outside::Never);
        }
        if !subject.label.is_empty() {
            let allowed = self
                .labels
                .iter()
                .any(|(label, who)| label == subject.label && matches(who, subject));
            return if allowed {
                Ok(Domain::Label(subject.label.to_owned()))
            } else {
                Err(Outside::Label)
            };
        }
        let merged = self.merges.iter().position(|who| matches(who, subject));
        if let Some(at) = merged {
            return Ok(Domain::Merged(at));
        }
        match self.base {
            Base::User => Ok(Domain::User(subject.uid)),
            Base::Cgroup => {
                let cgroup = subject.cgroup.ok_or(Outside::NoCgroup)?;
                Ok(Domain::Cgroup(subject.uid, cgroup.to_owned()))
            }
            Base::None => Err(Outside::Never),
        }
    }

    /// Whether the cgroups of processes matter.
    #[must_use]
    pub fn asks_for_cgroups(&self) -> bool {
        let lists = self.merges.iter().chain([&self.never]);
        let mut all = lists
            .chain(self.labels.iter().map(|(_, who)| who))
            .flatten();
        self.base == Base::Cgroup || all.any(|who| matches!(who, Who::Cgroup(_)))
    }
}

fn matches(list: &[Who], subject: Subject<'_>) -> bool {
    list.iter().any(|who| match who {
        Who::Any => true,
        Who::Users(uids) => uids.contains(&subject.uid),
        Who::Cgroup(path) => subject.cgroup.is_some_and(|own| is_below(own, path)),
    })
}

/// Whether a cgroup is another one or below it.
fn is_below(own: &str, path: &str) -> bool {
    let rest = own.strip_prefix(path.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests;
