//! A piece of mergeable memory, and what its owner knows of it.

use crate::board::{Board, Kind};
use crate::random::Random;
use crate::sys::memory::Piece;
use std::ops::Range;
use testsuite::content::{self, PAGE_SIZE};

/// Contents that pages are drawn from; 0 is the zero page.
pub(crate) const PATTERNS: u64 = 12;
/// Pages of a plot: at first, and at most.
pub(crate) const PAGES: usize = 48;
pub(crate) const MOST_PAGES: usize = 64;

pub(crate) type Page = [u8; PAGE_SIZE];

#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) memory: Piece,
    /// The number of each page's content.
    pub(crate) contents: Vec<u64>,
}

impl Plot {
    /// Mergeable memory, all zeroes.
    pub(crate) fn new() -> std::io::Result<Self> {
        let memory = Piece::map(PAGES)?;
        memory.advise(0..PAGES, libc::MADV_MERGEABLE)?;
        Ok(Self {
            memory,
            contents: vec![0; PAGES],
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.contents.len()
    }

    /// Compares all of a page.
    pub(crate) fn check(&self, page: usize, board: &Board) -> Result<(), String> {
        let mut bytes = [0; PAGE_SIZE];
        self.memory.read(page, &mut bytes);
        board.count(Kind::PageChecked);
        if content::first_wrong_byte(&bytes, self.contents[page]).is_none() {
            return Ok(());
        }
        let address = self.memory.address(page);
        let mut again = [0; PAGE_SIZE];
        self.memory.read(page, &mut again);
        Err(format!(
            "page {page} at {address:#x} should be {}, is {}; read again: {}",
            self.contents[page],
            describe(&bytes),
            describe(&again)
        ))
    }

    pub(crate) fn check_run(&self, run: Range<usize>, board: &Board) -> Result<(), String> {
        run.into_iter().try_for_each(|page| self.check(page, board))
    }

    pub(crate) fn check_all(&self, board: &Board) -> Result<(), String> {
        self.check_run(0..self.len(), board)
    }
}

pub(crate) fn draw(random: &mut Random) -> u64 {
    // Few patterns are frequent and the others rare: chains of dups, and pairs.
    let half = random.once_in(2);
    random.next() % if half { 3 } else { PATTERNS }
}

/// Which contents a page is made of, from where on.
fn describe(bytes: &Page) -> String {
    let all: Vec<Vec<u8>> = (0..PATTERNS).map(content::page).collect();
    let mut parts: Vec<(usize, Option<usize>)> = Vec::new();
    for at in (0..PAGE_SIZE).step_by(8) {
        let word = &bytes[at..at + 8];
        let found = all.iter().position(|page| page[at..at + 8] == *word);
        if parts.last().is_none_or(|(_, last)| *last != found) {
            parts.push((at, found));
        }
    }
    let words = parts.iter().take(8).map(|(at, found)| match found {
        Some(id) => format!("{id} from byte {at}"),
        None => format!("unknown from byte {at}"),
    });
    words.collect::<Vec<_>>().join(", ")
}
