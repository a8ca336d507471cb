//! Engine and agent inside one process. One test, for a process has one engine and its counters are global.

use ksm_client::embedded::EmbeddedError;
use ksm_client::{Client, Config, Embedded, MergeableRegion, StartError};

const PAGE: usize = 4096;
const PAGES: usize = 64;

/// An engine that scans as fast as it can.
fn eager() -> Embedded {
    let engine = Embedded::new().expect("userfaultfd");
    for (knob, value) in [
        ("smart_scan", "0"),
        ("sleep_millisecs", "0"),
        ("pages_to_scan", "10000"),
        ("run", "1"),
    ] {
        engine.write_knob(knob, value).expect("a valid value");
    }
    engine
}

/// Pages that differ from each other.
fn filled(engine: &Embedded, seed: usize) -> MergeableRegion {
    let mut region = engine.allocate(PAGES * PAGE).expect("memory");
    fill(&mut region, seed);
    region
}

fn fill(region: &mut [u8], seed: usize) {
    for (page, bytes) in region.chunks_mut(PAGE).enumerate() {
        bytes.fill(byte(page, seed));
        bytes[..8].copy_from_slice(&(page + seed * 1000).to_ne_bytes());
    }
}

fn byte(page: usize, seed: usize) -> u8 {
    u8::try_from((page + seed) % 250 + 1).expect("small")
}

fn is_filled(region: &[u8], seed: usize) -> bool {
    region.chunks(PAGE).enumerate().all(|(page, bytes)| {
        bytes[..8] == (page + seed * 1000).to_ne_bytes()
            && bytes[8..].iter().all(|b| *b == byte(page, seed))
    })
}

fn scan(engine: &Embedded, more: u64) {
    let scans = engine.count("full_scans").expect("a counter") + more;
    engine.run_until_full_scans(scans).expect("run is 1");
}

/// Shared and sharing pages.
fn shares(engine: &Embedded) -> (u64, u64) {
    let count = |name| engine.count(name).expect("a counter");
    (count("pages_shared"), count("pages_sharing"))
}

#[test]
fn one_process_merges_its_own_memory() {
    let engine = eager();
    assert_eq!(Embedded::new().err(), Some(EmbeddedError::Taken));
    assert_eq!(
        Client::start(&Config::default()).err(),
        Some(StartError::Embedded)
    );

    let mut one = filled(&engine, 1);
    let mut two = filled(&engine, 1);
    let other = filled(&engine, 2);
    scan(&engine, 3);
    assert_eq!(shares(&engine), (PAGES as u64, PAGES as u64));
    assert!(is_filled(&one, 1) && is_filled(&two, 1) && is_filled(&other, 2));
    let figures = engine.figures().expect("of this process");
    assert_eq!(figures.merging_pages, 2 * PAGES as u64);

    // A write makes a page private, and nobody else sees it.
    one[5 * PAGE] ^= 0xff;
    assert!(is_filled(&two, 1));
    one[5 * PAGE] ^= 0xff;
    assert!(is_filled(&one, 1));

    // Emptied pages read as zero, and the other copies stay.
    one.discard(10..3 * PAGE + 10).expect("madvise");
    assert!(one[10..3 * PAGE + 10].iter().all(|byte| *byte == 0));
    assert_ne!(one[..10], [0; 10]);
    assert_ne!(one[3 * PAGE + 10], 0);
    fill(&mut one, 1);
    assert!(is_filled(&two, 1));

    // Unmerging blocks until it is done, and merging can begin anew.
    engine.write_knob("run", "2").expect("unmerges");
    assert_eq!(shares(&engine), (0, 0));
    assert_eq!(engine.read("run").expect("a file"), "2");
    assert_eq!(
        engine.run_until_full_scans(1000),
        Err(EmbeddedError::NotRunning)
    );
    assert!(is_filled(&one, 1) && is_filled(&two, 1));
    engine.write_knob("run", "1").expect("a valid value");
    scan(&engine, 4);
    assert_eq!(shares(&engine), (PAGES as u64, PAGES as u64));

    // In the background, while this thread writes.
    let background = engine.spawn().expect("a thread");
    for seed in 3..40 {
        fill(&mut one, seed);
        fill(&mut two, seed);
        assert!(is_filled(&one, seed) && is_filled(&two, seed) && is_filled(&other, 2));
    }
    scan(&engine, 6);
    assert_eq!(shares(&engine), (PAGES as u64, PAGES as u64));
    drop(background);

    // What the app mapped itself is its own again when the engine is gone.
    two.discard(0..PAGES * PAGE).expect("madvise");
    drop(other);
    drop((one, two));
    assert!(engine.read("nonsense").is_err());
    assert!(engine.write_knob("pages_shared", "1").is_err());
    drop(engine);
    drop(Embedded::new().expect("the first is gone"));
}
