//! A worker of the demo: an app that links the client, with memory that it can check byte by byte.

use ksm_client::{Client, Config, MergeableRegion};
use ksm_engine::page::PAGE_SIZE;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

/// Pages that belong to one worker alone.
const OWN_PAGES: usize = 4096;
/// One page in so many is rewritten.
const REWRITE_EVERY: usize = 10;

struct Worker {
    region: MergeableRegion,
    files: Vec<Loaded>,
    own_start: usize,
    seed: u64,
    /// How often the rewritten pages were rewritten; 0 means not yet.
    round: u64,
    _client: Client,
}

struct Loaded {
    path: PathBuf,
    /// Page where it begins.
    page: usize,
    bytes: usize,
}

/// Does as the demo says, line by line, until its end.
///
/// # Errors
/// When the pipes to the demo break or the memory cannot be had.
pub fn serve(socket: &Path, seed: u64, list: &Path) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let client = Client::start(&Config::default().socket(socket)).map_err(io::Error::other)?;
    let mut worker = Worker::load(client, seed, list)?;
    let shared = worker.own_start * PAGE_SIZE;
    println!("ok {shared} {}", OWN_PAGES * PAGE_SIZE);
    for line in io::stdin().lock().lines() {
        let answer = match line?.as_str() {
            "rewrite" => worker.rewrite(),
            "verify" => worker.verify(),
            _ => Err("no such order".to_owned()),
        };
        match answer {
            Ok(()) => println!("ok"),
            Err(reason) => println!("err {reason}"),
        }
        io::stdout().flush()?;
    }
    Ok(())
}

impl Worker {
    fn load(client: Client, seed: u64, list: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        let mut page = 0;
        for path in std::fs::read_to_string(list)?.lines().map(PathBuf::from) {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
            files.push(Loaded { path, page, bytes });
            page += bytes.div_ceil(PAGE_SIZE);
        }
        let region = client
            .allocate((page + OWN_PAGES) * PAGE_SIZE)
            .map_err(io::Error::other)?;
        let mut worker = Self {
            region,
            files,
            own_start: page,
            seed,
            round: 0,
            _client: client,
        };
        for file in &worker.files {
            let bytes = &mut worker.region[file.page * PAGE_SIZE..][..file.bytes];
            File::open(&file.path)?.read_exact(bytes)?;
        }
        for page in 0..OWN_PAGES {
            let words = words(seed, page as u64, 0);
            fill(
                &mut worker.region[(worker.own_start + page) * PAGE_SIZE..][..PAGE_SIZE],
                words,
            );
        }
        Ok(worker)
    }

    fn is_rewritten(&self, page: usize) -> bool {
        self.round > 0 && page.is_multiple_of(REWRITE_EVERY)
    }

    fn rewrite(&mut self) -> Result<(), String> {
        self.round += 1;
        for page in (0..self.own_start + OWN_PAGES).step_by(REWRITE_EVERY) {
            let words = words(self.seed, page as u64, self.round);
            fill(&mut self.region[page * PAGE_SIZE..][..PAGE_SIZE], words);
        }
        Ok(())
    }

    fn verify(&self) -> Result<(), String> {
        let mut expected = vec![0; PAGE_SIZE];
        for file in &self.files {
            let mut source = File::open(&file.path).map_err(|e| e.to_string())?;
            for offset in 0..file.bytes.div_ceil(PAGE_SIZE) {
                let len = (file.bytes - offset * PAGE_SIZE).min(PAGE_SIZE);
                expected.fill(0);
                source
                    .read_exact(&mut expected[..len])
                    .map_err(|e| e.to_string())?;
                self.check(file.page + offset, &mut expected)?;
            }
        }
        for page in 0..OWN_PAGES {
            fill(&mut expected, words(self.seed, page as u64, 0));
            self.check(self.own_start + page, &mut expected)?;
        }
        Ok(())
    }

    /// Compares a page with what it was loaded with, or rewritten to since.
    fn check(&self, page: usize, expected: &mut [u8]) -> Result<(), String> {
        if self.is_rewritten(page) {
            fill(expected, words(self.seed, page as u64, self.round));
        }
        let bytes = &self.region[page * PAGE_SIZE..][..PAGE_SIZE];
        match bytes
            .iter()
            .zip(&*expected)
            .position(|(is, should)| is != should)
        {
            None => Ok(()),
            Some(offset) => Err(format!("page {page} is wrong at byte {offset}")),
        }
    }
}

/// Words that only this worker, page and round have.
fn words(seed: u64, page: u64, round: u64) -> impl Iterator<Item = u64> {
    // A linear congruential generator (Knuth's MMIX), started anew for each page.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (page << 20) ^ round;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state
    })
}

fn fill(page: &mut [u8], words: impl Iterator<Item = u64>) {
    for (bytes, word) in page.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}
