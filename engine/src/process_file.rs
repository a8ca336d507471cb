//! The two files of a process below `/proc` in which the kernel shows its merging: their names and texts.
//!
//! The mount has hidden files of this kind for every process that takes part, not in its listing; the preloaded library opens
//! them where a program asks for those of `/proc`.

use crate::wire::Figures;
use std::fmt::Write;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessFile {
    /// `ksm_stat`.
    Stat,
    /// `ksm_merging_pages`.
    MergingPages,
}

impl ProcessFile {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stat, Self::MergingPages];

    /// Its name below `/proc/PID`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stat => "ksm_stat",
            Self::MergingPages => "ksm_merging_pages",
        }
    }

    /// The name of the hidden file of process `pid`, as the daemon numbers it.
    #[must_use]
    pub fn hidden_name(self, pid: u32) -> String {
        format!(".{}.{pid}", self.name())
    }

    /// Which hidden file of which process a name is.
    #[must_use]
    pub fn from_hidden_name(name: &str) -> Option<(Self, u32)> {
        let (file, pid) = name.strip_prefix('.')?.rsplit_once('.')?;
        let file = Self::ALL.into_iter().find(|known| known.name() == file)?;
        let number = pid.parse().ok()?;
        // One name for each, so that the kernel keeps each once.
        (file.hidden_name(number) == name).then_some((file, number))
    }

    /// Its text, in the kernel's format.
    #[must_use]
    pub fn text(self, figures: &Figures, merges_any: bool, is_mergeable: bool) -> String {
        let yes = |is| if is { "yes" } else { "no" };
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = match self {
            Self::MergingPages => writeln!(text, "{}", figures.merging_pages),
            Self::Stat => writeln!(
                text,
                "ksm_rmap_items {}\nksm_zero_pages {}\nksm_merging_pages {}\nksm_process_profit {}\n\
                 ksm_merge_any: {}\nksm_mergeable: {}",
                figures.rmap_items,
                figures.zero_pages,
                figures.merging_pages,
                figures.profit,
                yes(merges_any),
                yes(is_mergeable),
            ),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::ProcessFile;

    #[test]
    fn each_hidden_file_has_one_name() {
        for file in ProcessFile::ALL {
            let name = file.hidden_name(4711);
            assert_eq!(ProcessFile::from_hidden_name(&name), Some((file, 4711)));
        }
        for name in [
            "ksm_stat.1",
            ".ksm_stat.01",
            ".ksm_stat.+1",
            ".ksm_stat.",
            ".ksm_stat",
            ".run.1",
            ".ksm_stat.1.2",
        ] {
            assert_eq!(ProcessFile::from_hidden_name(name), None, "{name}");
        }
    }
}
