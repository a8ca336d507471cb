//! Scans that follow each other at the kernel's own pace: what the counters come to in the end.

use crate::host::Host;
use crate::merging::fill_mixture;
use ksm_engine::knobs::KsmFile;

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

/// Scans after which everything has long settled. Beside other work an agent may be too late for some of them.
const SETTLED: u64 = 5;
const MOST_SCANS: u64 = 500;

/// Lets it scan until it has come to this.
fn run_to(host: &mut Host, expected: Converged) {
    host.set(KsmFile::Run, "1");
    for scans in SETTLED..MOST_SCANS {
        host.wait_scans(scans);
        if converged(host) == expected {
            break;
        }
    }
    host.set(KsmFile::Run, "0");
    assert_eq!(converged(host), expected);
}

type Converged = ([u64; 5], u64);

/// Shared, sharing, chains, dups, zero pages; then unshared and volatile pages together, between which smart scan moves.
fn converged(host: &mut Host) -> Converged {
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
    run_to(&mut host, ([1, 199, 0, 0, 0], 0));
}

#[test]
fn ten_pages_and_three_sharers_at_most() {
    let mut host = defaults(&[(KsmFile::MaxPageSharing, "3")]);
    host.process_of(10, 7);
    run_to(&mut host, ([3, 6, 1, 3, 0], 1));
}

#[test]
fn m01_a_mixture() {
    let mut host = defaults(&[]);
    fill_mixture(&mut host);
    run_to(&mut host, ([22, 248, 0, 0, 0], 30));
}

#[test]
fn m02_a_mixture_with_the_zero_page() {
    let mut host = defaults(&[(KsmFile::UseZeroPages, "1")]);
    fill_mixture(&mut host);
    run_to(&mut host, ([21, 129, 0, 0, 120], 30));
}
