//! How long single accesses take.

use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};
use testsuite::content::{PAGE_SIZE, mix};
use testsuite::workload::Part;

/// Writes to each of `count` pages that others have, too, what is there already; nanoseconds of the median write.
///
/// `memory` is all but the first quarter of the part. No page is read before.
pub(super) fn writes(memory: &mut [u8], part: Part, count: usize) -> String {
    let first = part.pages / 4;
    let mut expected = vec![0; PAGE_SIZE];
    let mut times: Vec<u64> = memory
        .chunks_exact_mut(PAGE_SIZE)
        .enumerate()
        .filter(|(number, _)| part.is_shared(first + number))
        .take(count)
        .map(|(number, page)| {
            part.fill_page(first + number, &mut expected);
            access(&mut page[0], expected[0], true)
        })
        .collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0).to_string()
}

/// Time from one access to the next.
const PACE: Duration = Duration::from_micros(10);
/// Parts of accesses whose times are told.
const PARTS: [f64; 5] = [0.5, 0.99, 0.999, 0.9999, 1.0];

/// Reads and writes pages at random for a while, a write being of what is there already; nanoseconds within which the
/// [`PARTS`] of the reads ended, then those of the writes.
pub(super) fn accesses(memory: &mut [u8], part: Part, milliseconds: u64) -> String {
    let first = part.pages / 4;
    let pages = memory.len() / PAGE_SIZE;
    let mut expected = vec![0; PAGE_SIZE];
    let mut times = [Vec::new(), Vec::new()];
    let (start, time) = (Instant::now(), Duration::from_millis(milliseconds));
    let mut next = Duration::ZERO;
    let mut drawn = 1u64;
    while start.elapsed() < time {
        drawn = mix(drawn.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let page = (drawn >> 1) as usize % pages;
        let is_write = drawn & 1 == 1;
        part.fill_page(first + page, &mut expected);
        let taken = access(&mut memory[page * PAGE_SIZE], expected[0], is_write);
        times[usize::from(is_write)].push(taken);
        next = (next + PACE).max(start.elapsed());
        while start.elapsed() < next {
            std::hint::spin_loop();
        }
    }
    let mut answer = String::new();
    for times in &mut times {
        times.sort_unstable();
        for part in PARTS {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a place in a list"
            )]
            let place = ((times.len() as f64 * part).ceil() as usize).saturating_sub(1);
            let _ = write!(answer, "{} ", times.get(place).copied().unwrap_or(0));
        }
    }
    answer
}

fn access(byte: &mut u8, value: u8, is_write: bool) -> u64 {
    let byte = black_box(byte);
    let start = Instant::now();
    if is_write {
        *byte = value;
    } else {
        black_box(*byte);
    }
    black_box(byte);
    nanoseconds(start)
}

/// The byte of a page that is looked at: not in the same cache set for all pages.
fn place(page: usize) -> usize {
    page * PAGE_SIZE + page * 64 % PAGE_SIZE
}

/// Takes the bytes that are looked at out of all caches, and has their pages in the page table.
pub(super) fn flush(memory: &[u8]) -> String {
    for page in 0..memory.len() / PAGE_SIZE {
        let byte = &memory[place(page)];
        black_box(*byte);
        testsuite::sys::flush(byte);
    }
    String::new()
}

/// Reads the same bytes.
pub(super) fn touch(memory: &[u8]) -> String {
    for page in 0..memory.len() / PAGE_SIZE {
        black_box(memory[place(page)]);
    }
    String::new()
}

/// Nanoseconds of a read or write in each page, in an order drawn at random; negative for pages that nobody else has.
pub(super) fn times(memory: &mut [u8], part: Part, is_write: bool) -> String {
    let first = part.pages / 4;
    let mut order: Vec<usize> = (0..memory.len() / PAGE_SIZE).collect();
    order.sort_by_key(|page| mix(*page as u64 ^ 0x5eed));
    let mut expected = vec![0; PAGE_SIZE];
    let mut answer = String::new();
    for page in order {
        part.fill_page(first + page, &mut expected);
        let value = expected[place(page) % PAGE_SIZE];
        let taken = access(&mut memory[place(page)], value, is_write);
        let sign = if part.is_shared(first + page) {
            ""
        } else {
            "-"
        };
        let _ = write!(answer, "{sign}{taken} ");
    }
    answer
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
