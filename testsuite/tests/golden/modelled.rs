//! Scenarios that only models can play: each says why.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::KsmFile;
use std::time::Duration;

/// No agent merges private mappings of files yet. Of a private mapping of a file, the pages that were written count, and those of the page cache do not.
#[test]
fn f01_half_of_a_mapping_is_written() {
    let mut host = Host::new(&[]);
    let a = host.process();
    host.touch(a, pages(0, 0..10));
    host.fill(a, pages(0, 10..20), 7);
    host.advise(a, pages(0, 0..20));
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    1    9    0    0    0    0    0    20    0    36224
        scan                        3    1    9    0    0    0    0    0    30    0    36224
        ",
    );
}

/// On a busy machine there is no saying that a process has written between every two scans.
#[test]
fn s15_a_page_that_is_written_all_the_time() {
    let mut host = Host::new(&[(KsmFile::SmartScan, "0"), (KsmFile::SleepMillisecs, "5")]);
    let a = host.process_of_unique(4, 3);
    host.set(KsmFile::Run, "1");
    for seed in 10..310 {
        host.unique(a, pages(0, 0..1), seed);
        host.wait(Duration::from_millis(1));
    }
    host.world.check();
    assert_eq!(host.number(KsmFile::PagesSharing), 0);
    assert_eq!(host.number(KsmFile::PagesUnshared), 3);
    assert_eq!(host.number(KsmFile::PagesVolatile), 1);
}

/// No file says how many items a process has left that has ended. What is left of a process that ends is freed with the next batch, although the scan has passed it already.
#[test]
fn a_process_that_ends_is_the_next_to_be_reached() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "2")]);
    let [a, _, _] = [5, 6, 7].map(|seed| host.process_of_unique(4, seed));
    host.set(KsmFile::Run, "1");
    (2..=10).for_each(|_| host.wake());
    host.exit(a);
    let items = |host: &mut Host| host.world.engine().counters().rmap_items;
    assert_eq!(items(&mut host), 12);
    // The second half of the second process, then what is left of the first, then the third.
    (11..=12).for_each(|_| host.wake());
    assert_eq!(items(&mut host), 8);
    assert_eq!(host.number(KsmFile::FullScans), 1);
}

/// No file says how many slots are in use. A page that only processes shared that have ended is stale: it is removed where a search comes by it, with its items.
#[test]
fn a_stale_page_is_removed_by_the_search_that_finds_it() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "1")]);
    let a = host.process_of(2, 7);
    let b = host.process();
    host.unique(b, pages(0, 0..1), 3);
    host.fill(b, pages(0, 1..2), 7);
    host.advise(b, pages(0, 0..2));
    host.set(KsmFile::Run, "1");
    (2..=8).for_each(|_| host.wake());
    assert_eq!(host.number(KsmFile::PagesShared), 1);
    // The scan is between the two pages of the other process, of which the second has been calm once.
    host.exit(a);
    host.wake();
    host.world.check();
    assert_eq!(host.number(KsmFile::PagesShared), 0);
    assert_eq!(host.number(KsmFile::PagesUnshared), 2);
    assert_eq!(host.world.engine().counters().slots_used, 0);
}

/// `pages_to_scan` after each of twelve full scans of 100 pages, and how many batches each took. The scanning has
/// used 40 s of CPU time before, and next to none since: that cannot be had from a real daemon.
fn advised(knobs: &[(KsmFile, &str)]) -> (Host, Vec<(u64, u32)>) {
    let mut host = Host::new(knobs);
    host.process_of_unique(100, 7);
    host.world.engine().set_cpu_time(Duration::from_secs(40));
    host.set(KsmFile::AdvisorMode, "scan-time");
    assert_eq!(host.read(KsmFile::AdvisorMode), "none [scan-time]");
    assert_eq!(host.number(KsmFile::PagesToScan), 500);
    host.set(KsmFile::Run, "1");
    let mut seen = vec![(host.number(KsmFile::PagesToScan), 1)];
    for _ in 0..10 {
        let before = host.number(KsmFile::FullScans);
        let mut wakes = 0;
        while host.number(KsmFile::FullScans) == before {
            host.wake();
            wakes += 1;
        }
        seen.push((host.number(KsmFile::PagesToScan), wakes));
    }
    (host, seen)
}

#[test]
fn a01_the_advisor_with_little_to_do() {
    let (mut host, seen) = advised(&[]);
    let first = [(10, 1), (100, 11), (1000, 2), (10_000, 1)];
    let measured: Vec<_> = first.into_iter().chain([(30_000, 1); 7]).collect();
    assert_eq!(seen, measured);
    host.set(KsmFile::AdvisorMode, "none");
    assert_eq!(host.number(KsmFile::PagesToScan), 100);
}

#[test]
fn a02_the_advisor_with_a_second_for_each_scan() {
    let (_, seen) = advised(&[
        (KsmFile::AdvisorTargetScanTime, "1"),
        (KsmFile::AdvisorMaxPagesToScan, "1000"),
    ]);
    let measured: Vec<_> = [(70, 1), (700, 2)]
        .into_iter()
        .chain([(1000, 1); 9])
        .collect();
    assert_eq!(seen, measured);
}
