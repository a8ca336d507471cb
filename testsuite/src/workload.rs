//! What the processes of the benchmark hold: known to the program that fills its memory, and to the one that must know
//! how many pages can be shared.

use crate::content::{self, PAGE_SIZE, mix};
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Pages of a cluster, and of a piece of a file that is read at once.
const CLUSTER: usize = 64;
/// Where the files of the machine are; symbolic links are not followed.
const FILE_ROOTS: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/local"];
/// Smaller files are mostly padding.
const SMALLEST_FILE: u64 = 64 << 10;

/// A kind of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// The same random data in every process.
    Clones,
    /// Half of the single pages, at random, the same in every process.
    Scattered,
    /// The same in runs of 64 pages.
    Clustered,
    /// Nothing equal.
    Unique,
    /// Nothing but zeros.
    Zeros,
    /// One pattern in every page.
    Pattern,
    /// Files of the machine, in another order in every process.
    Files,
}

/// The memory of one process.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What it holds.
    pub workload: Workload,
    /// The number of the process.
    pub process: u64,
    /// How many pages it has.
    pub pages: usize,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Clones,
        Self::Scattered,
        Self::Clustered,
        Self::Unique,
        Self::Zeros,
        Self::Pattern,
        Self::Files,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clones => "clones",
            Self::Scattered => "scattered",
            Self::Clustered => "clustered",
            Self::Unique => "unique",
            Self::Zeros => "zeros",
            Self::Pattern => "pattern",
            Self::Files => "files",
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|workload| workload.name() == word)
            .ok_or_else(|| format!("no such workload: {word}"))
    }
}

impl Part {
    /// Fills the memory.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fill(&self, memory: &mut [u8]) -> io::Result<()> {
        if self.workload == Workload::Files {
            let mut pages = memory.chunks_exact_mut(PAGE_SIZE);
            return self.each_file_page(|bytes| {
                if let Some(page) = pages.next() {
                    page.copy_from_slice(bytes);
                }
            });
        }
        for (page, bytes) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
            content::fill(bytes, self.id(page));
        }
        Ok(())
    }

    /// Fills the bytes of one page, of any workload but files.
    pub fn fill_page(&self, page: usize, bytes: &mut [u8]) {
        content::fill(bytes, self.id(page));
    }

    /// The first page from page `from` on that is not as it was filled, every byte compared.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn first_wrong_page<'a>(
        &self,
        pages: impl Iterator<Item = &'a [u8]>,
        from: usize,
    ) -> io::Result<Option<usize>> {
        let mut pages = pages.enumerate();
        if self.workload != Workload::Files {
            return Ok(pages
                .skip(from)
                .find(|(page, bytes)| content::first_wrong_byte(bytes, self.id(*page)).is_some())
                .map(|(page, _)| page));
        }
        let mut wrong = None;
        self.each_file_page(|bytes| {
            let differing = pages
                .next()
                .filter(|(number, page)| *number >= from && *page != bytes);
            wrong = wrong.or(differing.map(|(number, _)| number));
        })?;
        Ok(wrong)
    }

    /// Whether every process has a page like this one. Unknown, and `false`, for files.
    #[must_use]
    pub fn is_shared(&self, page: usize) -> bool {
        let drawn = |n: usize| mix(n as u64 + 1) & 1 == 0;
        match self.workload {
            Workload::Clones | Workload::Zeros | Workload::Pattern => true,
            Workload::Scattered => drawn(page),
            Workload::Clustered => drawn(page / CLUSTER),
            Workload::Unique | Workload::Files => false,
        }
    }

    /// The number of a page's content; see [`content::fill`].
    fn id(&self, page: usize) -> u64 {
        match self.workload {
            Workload::Zeros => 0,
            Workload::Pattern => 1,
            _ => {
                let owner = if self.is_shared(page) {
                    1
                } else {
                    self.process + 2
                };
                (owner << 40) + page as u64 + 1
            }
        }
    }

    /// A number for each page: equal where contents are, 0 for zeros.
    fn keys(&self) -> io::Result<Vec<u64>> {
        if self.workload != Workload::Files {
            return Ok((0..self.pages).map(|page| self.id(page)).collect());
        }
        let mut keys = Vec::with_capacity(self.pages);
        self.each_file_page(|bytes| {
            let mut hasher = DefaultHasher::new();
            hasher.write(bytes);
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            keys.push(if is_zero { 0 } else { hasher.finish() | 1 });
        })?;
        Ok(keys)
    }

    /// The pages of the process in order. Each process has the same files in another order.
    fn each_file_page(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut files = files(self.pages as u64)?;
        files.sort_by_key(|(path, _)| {
            let mut hasher = DefaultHasher::new();
            hasher.write(path.as_os_str().as_encoded_bytes());
            mix(hasher.finish() ^ self.process)
        });
        let mut buffer = vec![0; CLUSTER * PAGE_SIZE];
        for (path, pages) in files {
            let mut file = File::open(&path)?.take(pages * PAGE_SIZE as u64);
            let mut left = usize::try_from(pages).map_err(io::Error::other)?;
            while left > 0 {
                let piece = &mut buffer[..left.min(CLUSTER) * PAGE_SIZE];
                let len = read_full(&mut file, piece)?;
                piece[len..].fill(0);
                piece.chunks_exact(PAGE_SIZE).for_each(&mut take);
                left -= piece.len() / PAGE_SIZE;
            }
        }
        Ok(())
    }
}

fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// Files of the machine that fill `pages` pages, or as many as there are; the last one is cut off.
///
/// # Errors
/// When a directory cannot be read.
pub fn files(pages: u64) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut chosen = Vec::new();
    let mut left = pages;
    let mut waiting: Vec<PathBuf> = FILE_ROOTS.iter().rev().map(PathBuf::from).collect();
    while let (Some(directory), true) = (waiting.pop(), left > 0) {
        let mut entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() && left > 0 {
                let size = entry.metadata()?.len();
                if size >= SMALLEST_FILE && is_readable(&entry.path()) {
                    let take = size.div_ceil(PAGE_SIZE as u64).min(left);
                    left -= take;
                    chosen.push((entry.path(), take));
                }
            }
        }
    }
    Ok(chosen)
}

fn is_readable(path: &Path) -> bool {
    File::open(path).is_ok()
}

/// Pages that need no memory of their own once all equal ones are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What `pages_sharing` comes to.
    pub sharing: u64,
    /// What `ksm_zero_pages` comes to.
    pub zero: u64,
}

/// What merging must come to, with at most `limit` sharers of a page, and zeros on the zero page if `use_zero_pages`.
///
/// # Errors
/// When a file cannot be read.
pub fn expected(parts: &[Part], limit: u64, use_zero_pages: bool) -> io::Result<Expected> {
    let mut copies: HashMap<u64, u64> = HashMap::new();
    for part in parts {
        for key in part.keys()? {
            *copies.entry(key).or_default() += 1;
        }
    }
    let zero = if use_zero_pages {
        copies.remove(&0).unwrap_or(0)
    } else {
        0
    };
    // One page for `limit` sharers; a single one that is left over has nobody to share with.
    let sharing = copies.values().map(|n| n - n.div_ceil(limit)).sum();
    Ok(Expected { sharing, zero })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(workload: Workload, pages: usize) -> Vec<Part> {
        (0..3)
            .map(|process| Part {
                workload,
                process,
                pages,
            })
            .collect()
    }

    #[test]
    fn memory_is_what_the_expectation_counts() {
        for workload in Workload::ALL {
            let parts = parts(workload, 300);
            let mut copies: HashMap<Vec<u8>, u64> = HashMap::new();
            for part in &parts {
                let mut memory = vec![1; part.pages * PAGE_SIZE];
                part.fill(&mut memory).expect("readable files");
                let wrong = |memory: &[u8], from| {
                    part.first_wrong_page(memory.chunks(PAGE_SIZE), from)
                        .expect("readable files")
                };
                assert_eq!(wrong(&memory, 0), None);
                for page in memory.chunks(PAGE_SIZE) {
                    *copies.entry(page.to_vec()).or_default() += 1;
                }
                memory[299 * PAGE_SIZE + 4095] ^= 1;
                assert_eq!(wrong(&memory, 0), Some(299));
                memory[7 * PAGE_SIZE] ^= 1;
                assert_eq!(wrong(&memory, 0), Some(7));
                assert_eq!(wrong(&memory, 8), Some(299));
            }
            let sharing: u64 = copies.values().map(|n| n - n.div_ceil(256)).sum();
            let zero = copies.get(&vec![0; PAGE_SIZE]).copied().unwrap_or(0);
            let expected = |zeros| expected(&parts, 256, zeros).expect("readable files");
            assert_eq!(
                expected(false),
                Expected { sharing, zero: 0 },
                "{workload:?}"
            );
            let without = sharing - (zero - zero.div_ceil(256));
            assert_eq!(
                expected(true),
                Expected {
                    sharing: without,
                    zero
                },
                "{workload:?}"
            );
        }
    }
}
