//! A worker: holds mergeable pages, knows what is in each, does as it is told.

use crate::{attack, exhaust, race};
use ksm_client::{Client, Config, MergeableRegion};
use ksm_engine::order::Outcome;
use std::fs::File;
use std::io::{BufRead, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use testsuite::content::{self, PAGE_SIZE};

type Answer = Result<String, String>;

struct Worker {
    client: Client,
    region: MergeableRegion,
    /// Content number of each page.
    contents: Vec<u64>,
    hoard: exhaust::Hoard,
}

pub(crate) fn run(socket: &Path, uid: u32, pages: usize) -> ExitCode {
    let mut worker = match Worker::start(socket, uid, pages) {
        Ok(worker) => worker,
        Err(reason) => {
            println!("err {reason}");
            return ExitCode::FAILURE;
        }
    };
    println!("ok");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match worker.obey(&words) {
            Ok(value) => format!("ok {value}"),
            Err(reason) => format!("err {reason}"),
        };
        println!("{}", answer.trim_end());
        if std::io::stdout().flush().is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

impl Worker {
    fn start(socket: &Path, uid: u32, pages: usize) -> Result<Self, String> {
        testsuite::sys::end_with_parent();
        if uid != 0 {
            testsuite::sys::become_user(uid).map_err(|error| format!("setuid: {error}"))?;
        }
        let config = Config::default().socket(socket).track_writes();
        let client =
            Client::start(&config.versions(crate::versions())).map_err(|e| e.to_string())?;
        let region = client
            .allocate(pages * PAGE_SIZE)
            .map_err(|e| e.to_string())?;
        Ok(Self {
            client,
            region,
            contents: vec![0; pages],
            hoard: exhaust::Hoard::default(),
        })
    }

    fn obey(&mut self, words: &[&str]) -> Answer {
        match words {
            ["fill", start, count, "same", id] => {
                let id = number(id)?;
                self.fill(range(start, count)?, |_| id)
            }
            ["fill", start, count, "each", seed] => {
                let seed: u64 = number(seed)?;
                self.fill(range(start, count)?, |page| (seed << 32) + page as u64 + 1)
            }
            ["fill", start, count, "twins"] => {
                let pages = range(start, count)?;
                let (first, half) = (pages.start, pages.len() / 2);
                self.fill(pages, |page| twin(page - first, half))
            }
            ["verify"] => self.verify(),
            ["merged"] => merged_pages().map(|pages| pages.to_string()),
            ["discard", start, count] => {
                let pages = range(start, count)?;
                let bytes = pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
                self.region.discard(bytes).map_err(|e| e.to_string())?;
                self.contents[pages].fill(0);
                Ok(String::new())
            }
            ["unmergeable", start, count] => self.advise(range(start, count)?, false),
            ["mergeable", start, count] => self.advise(range(start, count)?, true),
            ["figures"] => {
                let f = self.client.figures().map_err(|e| e.to_string())?;
                Ok(format!(
                    "{} {} {} {}",
                    f.rmap_items, f.zero_pages, f.merging_pages, f.profit
                ))
            }
            ["link"] => Ok(self.client.status().link.to_string()),
            ["agent"] => Ok(self.client.status().agent.unwrap_or(0).to_string()),
            ["held-back-by-maps"] => Ok(self.outcome(Outcome::NoMaps).to_string()),
            ["fork-verify"] => self.fork_verify(),
            ["fork-keep", file] => self.fork_keep(Path::new(file)),
            ["fill-maps"] => self.hoard.maps().map(|n| n.to_string()),
            ["fill-descriptors"] => self.hoard.descriptors().map(|n| n.to_string()),
            ["limit-address-space"] => exhaust::limit_address_space(),
            ["let-go"] => {
                self.hoard.let_go();
                Ok(String::new())
            }
            ["race", seconds] => self.race(Duration::from_secs(number(seconds)?)),
            ["merges"] => Ok(self.outcome(Outcome::Done).to_string()),
            ["attack-arenas"] => attack::arenas().map(|n| n.to_string()),
            _ => Err(format!("no such order: {words:?}")),
        }
    }

    fn outcome(&self, outcome: Outcome) -> u64 {
        self.client.status().figures.pages(outcome)
    }

    fn fill(&mut self, pages: Range<usize>, id: impl Fn(usize) -> u64) -> Answer {
        for page in pages {
            self.contents[page] = id(page);
            content::fill(&mut self.region[page * PAGE_SIZE..][..PAGE_SIZE], id(page));
        }
        Ok(String::new())
    }

    fn verify(&self) -> Answer {
        for (page, id) in self.contents.iter().enumerate() {
            let bytes = &self.region[page * PAGE_SIZE..][..PAGE_SIZE];
            if let Some(offset) = content::first_wrong_byte(bytes, *id) {
                return Err(format!("page {page} is wrong at byte {offset}"));
            }
        }
        Ok(String::new())
    }

    fn advise(&mut self, pages: Range<usize>, mergeable: bool) -> Answer {
        let bytes = pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
        let part = &mut self.region[bytes];
        testsuite::sys::advise(&self.client, part, mergeable)?;
        Ok(String::new())
    }

    fn race(&mut self, time: Duration) -> Answer {
        let client = &self.client;
        let fresh = |page: &mut [u8]| testsuite::sys::discard(client, page);
        race::run(&mut self.region, &mut self.contents, time, &fresh)?;
        Ok(String::new())
    }

    /// A child that checks everything and ends.
    fn fork_verify(&self) -> Answer {
        let ended =
            testsuite::sys::in_child(|| self.verify().is_ok()).map_err(|e| e.to_string())?;
        if ended {
            Ok(String::new())
        } else {
            Err("the child read wrong bytes".to_owned())
        }
    }

    /// A child that checks everything over and over, and counts its rounds in a file.
    fn fork_keep(&self, file: &Path) -> Answer {
        let log = File::create(file).map_err(|e| e.to_string())?;
        let child = testsuite::sys::spawn_child(|| {
            for round in 1u64.. {
                let text = match self.verify() {
                    Ok(_) => format!("{round:020}"),
                    Err(reason) => format!("wrong: {reason}"),
                };
                if log.write_all_at(text.as_bytes(), 0).is_err() || !text.starts_with('0') {
                    return;
                }
            }
        });
        child.map(|pid| pid.to_string()).map_err(|e| e.to_string())
    }
}

/// Pages of arenas mapped here that have no private copy.
fn merged_pages() -> Result<u64, String> {
    let maps = procfs::process::Process::myself()
        .and_then(|process| process.smaps())
        .map_err(|e| e.to_string())?;
    Ok(maps
        .iter()
        .filter(|map| ksmfs::footprint::is_arena(map))
        .map(merged_in)
        .sum())
}

fn merged_in(map: &procfs::process::MemoryMap) -> u64 {
    let size = (map.address.1 - map.address.0) / PAGE_SIZE as u64;
    let private = map.extension.map.get("Anonymous").copied().unwrap_or(0) / PAGE_SIZE as u64;
    size - private
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}

fn range(start: &str, count: &str) -> Result<Range<usize>, String> {
    let start = number(start)?;
    Ok(start..start + number::<usize>(count)?)
}

/// Every other page is equal to the one `half` pages before or behind it, and to no other.
fn twin(page: usize, half: usize) -> u64 {
    let single = page % 2 == 1;
    let number = if single { page } else { page % half };
    1 << 50 | u64::from(single) << 49 | number as u64
}
