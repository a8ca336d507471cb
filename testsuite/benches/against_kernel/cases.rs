//! The workloads by name, and the processes that have them.

use super::sides::Side;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use testsuite::content::PAGE_SIZE;
use testsuite::worker::Worker;
use testsuite::workload::{Part, Workload};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub name: &'static str,
    pub title: &'static str,
    pub workload: Workload,
    pub processes: u64,
    /// A quarter of the first process' pages is rewritten all the time.
    pub hot: bool,
    /// Only how the cost grows is looked at: scans without an end would take too long.
    pub growth: bool,
    /// MiB of a process as a multiple of what was asked for: numerator and denominator.
    scale: (u64, u64),
}

const PLAIN: Case = Case {
    name: "clones",
    title: "(a) clones: 2 processes with the same random data",
    workload: Workload::Clones,
    processes: 2,
    hot: false,
    growth: false,
    scale: (1, 1),
};

pub const ALL: [Case; 10] = [
    PLAIN,
    Case {
        name: "scattered",
        title: "(b) scattered: 4 processes, half of the single pages equal",
        workload: Workload::Scattered,
        processes: 4,
        ..PLAIN
    },
    Case {
        name: "clustered",
        title: "(c) clustered: 4 processes, half of the runs of 64 pages equal",
        workload: Workload::Clustered,
        processes: 4,
        ..PLAIN
    },
    Case {
        name: "unique",
        title: "(d) unique: 2 processes, nothing equal",
        workload: Workload::Unique,
        ..PLAIN
    },
    Case {
        name: "zeros",
        title: "(e) zeros: 2 processes, `use_zero_pages` 1",
        workload: Workload::Zeros,
        ..PLAIN
    },
    Case {
        name: "pattern",
        title: "(e) pattern: 2 processes, one pattern in every page",
        workload: Workload::Pattern,
        ..PLAIN
    },
    Case {
        name: "files",
        title: "(f) files: 3 processes with files of the machine, each in another order",
        workload: Workload::Files,
        processes: 3,
        ..PLAIN
    },
    Case {
        name: "hot",
        title: "(g) hot: clones, of which one rewrites a quarter of its pages all the time",
        hot: true,
        ..PLAIN
    },
    Case {
        name: "small",
        title: "(h) small: 4 processes, clustered, the size to compare `large` with",
        workload: Workload::Clustered,
        processes: 4,
        growth: true,
        scale: (1, 2),
        ..PLAIN
    },
    Case {
        name: "large",
        title: "(h) large: 4 processes, clustered, 16 times as many pages as `small`",
        workload: Workload::Clustered,
        processes: 4,
        growth: true,
        scale: (8, 1),
        ..PLAIN
    },
];

/// The cases that a word on the command line means: a name, or the letter of the title.
pub fn named(word: &str) -> Vec<Case> {
    let letter = format!("({word})");
    ALL.into_iter()
        .filter(|case| case.name == word || case.title.starts_with(&letter))
        .collect()
}

impl Case {
    /// MiB of one process.
    pub fn mib(&self, asked: u64) -> u64 {
        (asked * self.scale.0 / self.scale.1).max(1)
    }

    /// What each process has.
    pub fn parts(&self, asked: u64) -> Vec<Part> {
        let bytes = usize::try_from(self.mib(asked) << 20).expect("64 bits");
        (0..self.processes)
            .map(|process| Part {
                workload: self.workload,
                process,
                pages: bytes / PAGE_SIZE,
            })
            .collect()
    }

    pub fn use_zero_pages(&self) -> bool {
        self.workload == Workload::Zeros
    }
}

/// Processes that have filled their memory.
#[derive(Debug)]
pub struct Apps(pub Vec<Worker>);

impl Apps {
    /// Without a side nobody merges them.
    pub fn start(kit: &str, side: Option<&Side<'_>>, parts: &[Part]) -> io::Result<Self> {
        Self::start_as(kit, side, parts, &[])
    }

    /// As other users than root, in turn.
    pub fn start_as(
        kit: &str,
        side: Option<&Side<'_>>,
        parts: &[Part],
        users: &[u32],
    ) -> io::Result<Self> {
        let merger = side.map_or_else(|| Ok("none".to_owned()), Side::word)?;
        let mut apps: Vec<Worker> = parts
            .iter()
            .zip(users.iter().chain(std::iter::repeat(&0)))
            .map(|(part, user)| {
                let mut command = Command::new(kit);
                command
                    .args(["app", &merger, part.workload.name()])
                    .arg(part.process.to_string())
                    .arg(part.pages.to_string())
                    .arg(user.to_string())
                    // An interrupt from the terminal is for the benchmark, which ends them.
                    .process_group(0);
                Worker::spawn(command)
            })
            .collect();
        for app in &mut apps {
            app.hear();
        }
        Ok(Self(apps))
    }

    pub fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Worker::pid).collect()
    }

    /// Sums the answers' numbers, place by place.
    pub fn sums(&mut self, line: &str) -> io::Result<Vec<u64>> {
        let mut sums = Vec::new();
        for app in &mut self.0 {
            let answer = app.ask(line);
            for (place, word) in answer.split_whitespace().enumerate() {
                let number: u64 = word.parse().map_err(io::Error::other)?;
                if sums.len() <= place {
                    sums.push(0);
                }
                sums[place] += number;
            }
        }
        Ok(sums)
    }

    pub fn ask_all(&mut self, line: &str) {
        for app in &mut self.0 {
            app.tell(line);
        }
        for app in &mut self.0 {
            app.hear();
        }
    }
}
