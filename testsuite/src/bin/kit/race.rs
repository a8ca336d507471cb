//! Four writers against the agent: every page has one owner, who knows its content and checks all of it.
//!
//! Contents are drawn from few patterns, so that pages are merged all the time while they are written: by plain
//! stores (two writers), by `read(2)` into the page, and by direct I/O.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testsuite::content::{self, PAGE_SIZE, mix};

/// Contents that pages are drawn from; 0 is the zero page.
const PATTERNS: u64 = 12;

#[derive(Clone, Copy, Debug)]
enum Writer {
    Store,
    Read,
    Direct,
}

const WRITERS: [Writer; 4] = [Writer::Store, Writer::Read, Writer::Direct, Writer::Store];

/// Lets the writers loose on `region` for a while. Discarding a page is left to the owner of the region.
///
/// # Errors
/// The first wrong byte, or failed call.
pub(crate) fn run(
    region: &mut [u8],
    contents: &mut [u64],
    time: Duration,
    fresh: &(impl Fn(&mut [u8]) -> Result<(), String> + Sync),
) -> Result<(), String> {
    let file = patterns().map_err(|e| e.to_string())?;
    let stop = AtomicBool::new(false);
    let share = contents.len() / WRITERS.len();
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let parts = region
            .chunks_mut(share * PAGE_SIZE)
            .zip(contents.chunks_mut(share));
        let threads: Vec<_> = (1..)
            .zip(WRITERS)
            .zip(parts)
            .map(|((seed, kind), (pages, contents))| {
                let (file, stop) = (&file, &stop);
                scope.spawn(move || {
                    let mut owner = Owner {
                        kind,
                        file,
                        pages,
                        contents,
                        random: seed,
                    };
                    let result = owner.work(time, stop, fresh);
                    stop.store(true, Ordering::Relaxed);
                    result.map_err(|reason| format!("{kind:?} writer: {reason}"))
                })
            })
            .collect();
        let panicked = |_| Err("a writer panicked".to_owned());
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    });
    results.into_iter().collect()
}

/// The patterns in a file, and two descriptors of it: an ordinary one and one for direct I/O.
struct Patterns {
    plain: File,
    direct: OwnedFd,
}

fn patterns() -> std::io::Result<Patterns> {
    // Next to the program: unlike /tmp on some machines, a file system on a disk, which direct I/O needs.
    let beside = std::env::current_exe()?;
    let beside = beside.parent().ok_or(std::io::ErrorKind::NotFound)?;
    let mut file = tempfile::Builder::new()
        .prefix("patterns")
        .tempfile_in(beside)?;
    for id in 0..PATTERNS {
        file.write_all(&content::page(id))?;
    }
    file.as_file().sync_all()?;
    let direct = rustix::fs::open(file.path(), OFlags::RDONLY | OFlags::DIRECT, Mode::empty())?;
    Ok(Patterns {
        plain: file.into_file(),
        direct,
    })
}

struct Owner<'a> {
    kind: Writer,
    file: &'a Patterns,
    pages: &'a mut [u8],
    contents: &'a mut [u64],
    random: u64,
}

impl Owner<'_> {
    fn draw(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mix(self.random) >> 32).unwrap_or(0) % below
    }

    fn work(
        &mut self,
        time: Duration,
        stop: &AtomicBool,
        fresh: &impl Fn(&mut [u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                let page = self.draw(self.contents.len());
                self.check(page)?;
                // A page that was merged and broken may be pinned: with direct I/O about, it is not merged again.
                if self.draw(4) == 0 {
                    fresh(&mut self.pages[page * PAGE_SIZE..][..PAGE_SIZE])?;
                    self.contents[page] = 0;
                    self.check(page)?;
                }
                let id = self.draw(usize::try_from(PATTERNS).unwrap_or(1)) as u64;
                self.write(page, id)?;
                self.check(page)?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        (0..self.contents.len()).try_for_each(|page| self.check(page))
    }

    fn check(&self, page: usize) -> Result<(), String> {
        let bytes = &self.pages[page * PAGE_SIZE..][..PAGE_SIZE];
        match content::first_wrong_byte(bytes, self.contents[page]) {
            None => Ok(()),
            Some(offset) => Err(format!("page {page} is wrong at byte {offset}")),
        }
    }

    fn write(&mut self, page: usize, id: u64) -> Result<(), String> {
        let bytes = &mut self.pages[page * PAGE_SIZE..][..PAGE_SIZE];
        let offset = id * PAGE_SIZE as u64;
        let got = match self.kind {
            Writer::Store => {
                content::fill(bytes, id);
                Ok(PAGE_SIZE)
            }
            Writer::Read => rustix::io::pread(&self.file.plain, bytes, offset),
            Writer::Direct => rustix::io::pread(&self.file.direct, bytes, offset),
        };
        match got {
            Ok(PAGE_SIZE) => {
                self.contents[page] = id;
                Ok(())
            }
            Ok(short) => Err(format!("read {short} bytes")),
            Err(error) => Err(format!("read: {error}")),
        }
    }
}
