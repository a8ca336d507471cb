//! What merging came to in each process, and why not to more, in words or as JSON.

use ksm_engine::order::Outcome;
use ksm_engine::wire::ProcessFigures;
use serde_json::{Map, Value, json};
use std::fmt;

/// The outcomes that keep pages from merging, and what they are called.
const REASONS: [(Outcome, &str); 11] = [
    (Outcome::Changed, "changed"),
    (Outcome::Pinned, "pinned"),
    (Outcome::Gone, "gone"),
    (Outcome::Unsuitable, "unsuitable"),
    (Outcome::NoMaps, "no_maps"),
    (Outcome::NoMemory, "no_memory"),
    (Outcome::Unsure, "unsure"),
    (Outcome::Busy, "busy"),
    (Outcome::Claimed, "claimed"),
    (Outcome::Lost, "lost"),
    (Outcome::Failed, "failed"),
];

/// All processes that were asked for.
#[derive(Debug)]
pub struct Processes(pub Vec<ProcessFigures>);

impl Processes {
    /// One object for each.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.0.iter().map(one_to_json).collect()
    }

    /// Pages that the last full scan would have merged, had it not been a dry run.
    #[must_use]
    pub fn would_merge(&self) -> u64 {
        self.0.iter().map(|process| process.would_merge).sum()
    }
}

fn one_to_json(process: &ProcessFigures) -> Value {
    let reasons = reasons(process).map(|(name, count)| (name.to_owned(), count.into()));
    json!({
        "pid": process.pid,
        "comm": comm(process.pid),
        "uid": process.uid,
        "domain": process.domain,
        "registered": process.registered,
        "merged": process.merged,
        "zero": process.zero,
        "unshared": process.unshared,
        "volatile": process.volatile(),
        "would_merge": process.would_merge,
        "profit": process.profit,
        "not_merged": reasons.collect::<Map<_, _>>(),
    })
}

/// The reasons that ever were, with how often.
fn reasons(process: &ProcessFigures) -> impl Iterator<Item = (&'static str, u64)> {
    let count = |outcome: Outcome| process.reasons.get(outcome as usize).copied();
    REASONS
        .iter()
        .filter_map(move |(outcome, name)| Some((*name, count(*outcome)?)))
        .filter(|(_, count)| *count > 0)
}

/// The name of a process; empty if it is gone.
fn comm(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim_end().to_owned()
}

impl fmt::Display for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8} {:>8} {:<16} {:>10} {:>10} {:>8} {:>10} {:>10} {:>10}  NOT MERGED",
            "PID",
            "DOMAIN",
            "COMMAND",
            "MERGEABLE",
            "MERGED",
            "ZERO",
            "UNSHARED",
            "VOLATILE",
            "PROFIT/KiB",
        )?;
        for process in &self.0 {
            write!(
                f,
                "\n{:>8} {:>8} {:<16} {:>10} {:>10} {:>8} {:>10} {:>10} {:>10}",
                process.pid,
                process.domain,
                comm(process.pid),
                process.registered,
                process.merged,
                process.zero,
                process.unshared,
                process.volatile(),
                process.profit / 1024,
            )?;
            for (at, (name, count)) in reasons(process).enumerate() {
                write!(f, "{}{name} {count}", if at == 0 { "  " } else { ", " })?;
            }
        }
        if self.would_merge() > 0 {
            let pages = self.would_merge();
            write!(
                f,
                "\ndry run: {pages} pages would be saved ({} KiB)",
                pages * 4
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_named_and_those_that_never_were_are_left_out() {
        let mut process = ProcessFigures {
            pid: u32::MAX,
            registered: 100,
            rmap_items: 50,
            merged: 20,
            unshared: 10,
            would_merge: 7,
            ..ProcessFigures::default()
        };
        process.reasons[Outcome::Pinned as usize] = 3;
        process.reasons[Outcome::NoMaps as usize] = 2;
        process.reasons[Outcome::Done as usize] = 99;
        let all = Processes(vec![process]);
        let words = all.to_string();
        assert!(words.contains("  pinned 3, no_maps 2\n"), "{words}");
        assert!(
            words.ends_with("7 pages would be saved (28 KiB)"),
            "{words}"
        );
        let value = all.to_json();
        assert_eq!(value[0]["volatile"], json!(20));
        assert_eq!(value[0]["not_merged"], json!({"pinned": 3, "no_maps": 2}));
    }
}
