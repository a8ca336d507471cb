//! The grammar of policies: one statement a line.
//!
//! ```text
//! line      = [ statement ] [ "#" comment ]
//! statement = "domains" ( "user" | "cgroup" | "none" )
//!           | "merge" who { who }
//!           | "never" who { who }
//!           | "label" NAME who { who }
//! who       = "any" | "uid" NUMBER [ "-" NUMBER ] | "cgroup" PATH
//! ```

use super::{Base, Policy, Who};
use ksm_engine::wire::Label;
use std::str::FromStr;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct SyntaxError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No such statement.
    #[error("unknown statement {0:?}; there are domains, merge, never and label")]
    Statement(String),
    /// What a domain is, is said twice.
    #[error("what a domain is was said already, in line {0}")]
    Twice(usize),
    /// No such kind of domain.
    #[error("domains can be by user, by cgroup, or none; not {0:?}")]
    Base(String),
    /// Something is missing at the end.
    #[error("{0} is missing at the end")]
    Missing(&'static str),
    /// Something is too much.
    #[error("{0:?} is too much")]
    Surplus(String),
    /// Not a way to name processes.
    #[error("{0:?} names no processes; write any, uid NUMBER, uid NUMBER-NUMBER, or cgroup PATH")]
    Who(String),
    /// Not a user.
    #[error("{0:?} is no uid, nor a range of them")]
    Uid(String),
    /// Not a cgroup.
    #[error("{0:?} is no cgroup; write its path below the root of all, which begins with /")]
    Cgroup(String),
    /// Not a label.
    #[error("{0:?} is no label; use up to {most} letters, digits, and any of ._-", most = Label::LONGEST)]
    Label(String),
    /// It was said already.
    #[error("label {0} is in line {1} already")]
    LabelTwice(String, usize),
    /// A user would be in two domains.
    #[error("uid {0} is merged with others in line {1} already")]
    MergedTwice(u32, usize),
    /// Only one user, who is in one domain anyhow.
    #[error("a single uid has nobody to be merged with")]
    Alone,
}

impl FromStr for Policy {
    type Err = Vec<SyntaxError>;

    /// Reads all of it, and finds all mistakes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut reader = Reader::default();
        let mut errors = Vec::new();
        for (at, text) in text.lines().enumerate() {
            let line = at + 1;
            if let Err(problem) = reader.read(line, text) {
                errors.push(SyntaxError { line, problem });
            }
        }
        if errors.is_empty() {
            Ok(reader.policy)
        } else {
            Err(errors)
        }
    }
}

#[derive(Default)]
struct Reader {
    policy: Policy,
    /// Where what was said.
    base: Option<usize>,
    merges: Vec<usize>,
    labels: Vec<usize>,
}

impl Reader {
    fn read(&mut self, line: usize, text: &str) -> Result<(), Problem> {
        // Within a word it is a part of the word.
        let mut words = text
            .split_whitespace()
            .take_while(|word| !word.starts_with('#'));
        match words.next() {
            None => Ok(()),
            Some("domains") => self.base(line, &mut words),
            Some("merge") => self.merge(line, &mut words),
            Some("never") => {
                self.policy.never.extend(who(&mut words)?);
                Ok(())
            }
            Some("label") => self.label(line, &mut words),
            Some(other) => Err(Problem::Statement(other.to_owned())),
        }
    }

    fn base<'a>(
        &mut self,
        line: usize,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), Problem> {
        let kind = words
            .next()
            .ok_or(Problem::Missing("user, cgroup or none"))?;
        self.policy.base = match kind {
            "user" => Base::User,
            "cgroup" => Base::Cgroup,
            "none" => Base::None,
            other => return Err(Problem::Base(other.to_owned())),
        };
        if let Some(word) = words.next() {
            return Err(Problem::Surplus(word.to_owned()));
        }
        match self.base.replace(line) {
            Some(before) => Err(Problem::Twice(before)),
            None => Ok(()),
        }
    }

    fn merge<'a>(
        &mut self,
        line: usize,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), Problem> {
        let who = who(words)?;
        if let [Who::Users(uids)] = &who[..]
            && uids.start() == uids.end()
        {
            return Err(Problem::Alone);
        }
        for (uids, before, uid) in users(&who).flat_map(|new| {
            let earlier = self.policy.merges.iter().zip(&self.merges);
            earlier.flat_map(move |(old, line)| users(old).map(move |uids| (uids, *line, new)))
        }) {
            let first = *uids.start().max(uid.start());
            if uids.contains(&first) && uid.contains(&first) {
                return Err(Problem::MergedTwice(first, before));
            }
        }
        self.policy.merges.push(who);
        self.merges.push(line);
        Ok(())
    }

    fn label<'a>(
        &mut self,
        line: usize,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), Problem> {
        let label = words.next().ok_or(Problem::Missing("a label"))?;
        if Label::new(label).is_none_or(|label| label.is_empty()) {
            return Err(Problem::Label(label.to_owned()));
        }
        let known = self.policy.labels.iter().position(|(old, _)| old == label);
        if let Some(before) = known.and_then(|at| self.labels.get(at)) {
            return Err(Problem::LabelTwice(label.to_owned(), *before));
        }
        self.policy.labels.push((label.to_owned(), who(words)?));
        self.labels.push(line);
        Ok(())
    }
}

fn users(who: &[Who]) -> impl Iterator<Item = &std::ops::RangeInclusive<u32>> {
    who.iter().filter_map(|who| match who {
        Who::Users(uids) => Some(uids),
        Who::Any | Who::Cgroup(_) => None,
    })
}

/// The rest of a line: at least one.
fn who<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Vec<Who>, Problem> {
    let mut all = Vec::new();
    while let Some(word) = words.next() {
        all.push(match word {
            "any" => Who::Any,
            "uid" => Who::Users(uids(words.next().ok_or(Problem::Missing("a uid"))?)?),
            "cgroup" => {
                let path = words
                    .next()
                    .ok_or(Problem::Missing("the path of a cgroup"))?;
                if !is_of_a_cgroup(path) {
                    return Err(Problem::Cgroup(path.to_owned()));
                }
                Who::Cgroup(path.to_owned())
            }
            other => return Err(Problem::Who(other.to_owned())),
        });
    }
    if all.is_empty() {
        return Err(Problem::Missing("any, uid or cgroup"));
    }
    Ok(all)
}

/// Whether the kernel can name a cgroup so; a slash at the end is forgiven.
fn is_of_a_cgroup(path: &str) -> bool {
    let steps = path.strip_suffix('/').unwrap_or(path).split('/');
    let named = |step: &str| !matches!(step, "" | "." | "..");
    path.starts_with('/') && steps.skip(1).all(named)
}

fn uids(text: &str) -> Result<std::ops::RangeInclusive<u32>, Problem> {
    // The highest number means no user.
    let number = |text: &str| text.parse().ok().filter(|uid| *uid != u32::MAX);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(Problem::Uid(text.to_owned())),
    }
}
