//! What scenarios are written in: places in memory, and rows of counters.

use ksm_engine::knobs::KsmFile;
use ksm_engine::page::PageRun;
use std::ops::Range;

/// What a scenario shows in each row, in this order.
pub const COLUMNS: [KsmFile; 11] = [
    KsmFile::FullScans,
    KsmFile::PagesShared,
    KsmFile::PagesSharing,
    KsmFile::PagesUnshared,
    KsmFile::PagesVolatile,
    KsmFile::ZeroPages,
    KsmFile::StableNodeChains,
    KsmFile::StableNodeDups,
    KsmFile::PagesScanned,
    KsmFile::PagesSkipped,
    KsmFile::GeneralProfit,
];
/// First page of the first region of each process.
const FIRST_PAGE: u64 = 0x7000;
/// Pages from one region to the next.
pub const REGION_PAGES: u64 = 0x1000;

/// A label, and what the columns were.
pub type Row = (String, Vec<String>);

/// The pages of region number `region` of a process.
pub fn pages(region: u64, range: Range<u64>) -> PageRun {
    let first = FIRST_PAGE + region * REGION_PAGES;
    PageRun::between(first + range.start, first + range.end)
}

/// Compares rows with what was measured: one row a line, the label first, then the columns full_scans, pages_shared,
/// pages_sharing, pages_unshared, pages_volatile, ksm_zero_pages, stable_node_chains, stable_node_dups,
/// pages_scanned, pages_skipped, general_profit.
pub fn compare(rows: &[Row], measured: &str) {
    let shown = |label: &str, row: &[String]| {
        let row: String = row.iter().map(|number| format!("{number:>9}")).collect();
        format!("{label:26}{row}")
    };
    let expected: Vec<String> = measured
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let (label, row) = words.split_at(words.len() - COLUMNS.len());
            shown(&label.join(" "), row)
        })
        .collect();
    let recorded = rows.iter().map(|(label, row)| shown(label, row));
    let recorded: Vec<String> = recorded.collect();
    assert!(
        recorded == expected,
        "\nmeasured on the kernel:\n{}\nhere:\n{}\n",
        expected.join("\n"),
        recorded.join("\n")
    );
}
