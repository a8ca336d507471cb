//! How long single accesses take.

use std::hint::black_box;
use std::time::Instant;
use testsuite::content::PAGE_SIZE;
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
            let start = Instant::now();
            *black_box(&mut page[0]) = expected[0];
            black_box(&page);
            nanoseconds(start)
        })
        .collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0).to_string()
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
