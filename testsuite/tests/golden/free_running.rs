//! Scans that follow each other at the kernel's own pace: what the counters come to in the end.

use crate::host::{Host, pages};
use crate::merging::fill_mixture;
use ksm_engine::knobs::KsmFile;
use std::time::Duration;

/// The kernel's pace, and one other knob.
fn defaults(other: &[(KsmFile, &str)]) -> Host {
    let mut host = Host::new(&[
        (KsmFile::PagesToScan, "100"),
        (KsmFile::SleepMillisecs, "20"),
    ]);
    for (file, value) in other {
        host.set(*file, value);
    }
    host
}

/// Lets so many milliseconds pass.
fn run(host: &mut Host, millis: u32, mut each: impl FnMut(&mut Host)) {
    host.set(KsmFile::Run, "1");
    for _ in 0..millis {
        each(host);
        host.world.wait(Duration::from_millis(1));
        host.world.settle();
    }
    host.world.check();
}

/// Shared, sharing, chains, dups, zero pages; then unshared and volatile pages together, between which smart scan moves.
fn converged(host: &mut Host) -> ([u64; 5], u64) {
    let merged = [
        KsmFile::PagesShared,
        KsmFile::PagesSharing,
        KsmFile::StableNodeChains,
        KsmFile::StableNodeDups,
        KsmFile::ZeroPages,
    ];
    let alone = [KsmFile::PagesUnshared, KsmFile::PagesVolatile];
    (
        merged.map(|file| host.number(file)),
        alone.map(|file| host.number(file)).iter().sum(),
    )
}

#[test]
fn four_processes_with_equal_pages() {
    let mut host = defaults(&[]);
    for _ in 0..4 {
        host.process_of(50, 7);
    }
    run(&mut host, 300, |_| {});
    assert_eq!(converged(&mut host), ([1, 199, 0, 0, 0], 0));
}

#[test]
fn ten_pages_and_three_sharers_at_most() {
    let mut host = defaults(&[(KsmFile::MaxPageSharing, "3")]);
    host.process_of(10, 7);
    run(&mut host, 100, |_| {});
    assert_eq!(converged(&mut host), ([3, 6, 1, 3, 0], 1));
}

#[test]
fn m01_a_mixture() {
    let mut host = defaults(&[]);
    fill_mixture(&mut host);
    run(&mut host, 400, |_| {});
    assert_eq!(converged(&mut host), ([22, 248, 0, 0, 0], 30));
}

#[test]
fn m02_a_mixture_with_the_zero_page() {
    let mut host = defaults(&[(KsmFile::UseZeroPages, "1")]);
    fill_mixture(&mut host);
    run(&mut host, 400, |_| {});
    assert_eq!(converged(&mut host), ([21, 129, 0, 0, 120], 30));
}

#[test]
fn s15_a_page_that_is_written_all_the_time() {
    let mut host = Host::new(&[(KsmFile::SmartScan, "0"), (KsmFile::SleepMillisecs, "5")]);
    let a = host.process_of_unique(4, 3);
    let mut seed = 10;
    run(&mut host, 300, |host| {
        seed += 1;
        host.unique(a, pages(0, 0..1), seed);
    });
    assert_eq!(converged(&mut host).0, [0; 5]);
    assert_eq!(host.number(KsmFile::PagesUnshared), 3);
    assert_eq!(host.number(KsmFile::PagesVolatile), 1);
}
