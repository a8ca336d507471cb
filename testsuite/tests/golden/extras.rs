//! What the kernel's KSM does not do, and only on request: refiling, and equal pages whose phases differ.

use crate::host::{Host, Pid};
use crate::scenario::pages;
use ksm_engine::engine::Extras;
use ksm_engine::knobs::KsmFile;

/// Five dups of four sharers each; then all but one sharer of each write to their pages.
fn fragmented(refile_percent: u8) -> (Host, Pid) {
    let mut host = Host::new(&[(KsmFile::MaxPageSharing, "4")]);
    host.world.set_extras(Extras {
        refile_percent,
        ..Extras::default()
    });
    let a = host.process_of(20, 7);
    host.start();
    host.steps(1);
    for page in (0..20).filter(|page| page % 4 != 0) {
        host.unique(a, pages(0, page..page + 1), 3);
    }
    host.steps(1);
    (host, a)
}

fn refiled(host: &mut Host) -> u64 {
    host.world.engine().counters().pages_refiled
}

/// The ratio of dups to chains is the sign of fragmentation: five dups for five sharers, where two could do.
#[test]
fn without_refiling_dups_with_few_sharers_stay() {
    let (mut host, _) = fragmented(0);
    host.set(KsmFile::SmartScan, "0");
    host.steps(3);
    assert_eq!(refiled(&mut host), 0);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    5   15    0    0    0    1    5    40    0    60160
        scan                        3    5    0    0   15    0    1    5    60    0    -1280
        scan                        4    5    0   15    0    0    1    5    80    0    -1280
        scan                        5    5    0   15    0    0    1    5   100    0    -1280
        scan                        6    5    0   15    0    0    1    5   120    0    -1280
        ",
    );
}

/// Five per cent of twenty pages is one page in each scan.
#[test]
fn refiling_gives_dups_with_few_sharers_back() {
    let (mut host, a) = fragmented(5);
    host.set(KsmFile::SmartScan, "0");
    host.steps(5);
    assert_eq!(refiled(&mut host), 3);
    let slots: std::collections::BTreeSet<_> = [0, 4, 8, 12, 16]
        .map(|page| host.model(a).page(pages(0, page..page + 1).start))
        .map(|page| format!("{page:?}"))
        .into();
    assert_eq!(slots.len(), 2);
    assert_eq!(host.world.engine().counters().slots_used, 2);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    5   15    0    0    0    1    5    40    0    60160
        scan                        3    5    0    0   15    0    1    5    60    0    -1280
        scan                        4    4    1   15    0    0    1    4    80    0     2816
        scan                        5    3    2   15    0    0    1    3   100    0     6912
        scan                        6    2    3   15    0    0    1    2   120    0    11008
        scan                        7    2    3   15    0    0    1    2   140    0    11008
        scan                        8    2    3   15    0    0    1    2   160    0    11008
        ",
    );
}

#[test]
fn refiling_never_exceeds_its_share_of_a_scan() {
    for percent in [1, 4, 10, 25, 100] {
        let mut host = Host::new(&[(KsmFile::MaxPageSharing, "8"), (KsmFile::SmartScan, "0")]);
        let refile_percent = percent;
        host.world.set_extras(Extras {
            refile_percent,
            ..Extras::default()
        });
        let a = host.process_of(400, 7);
        host.start();
        host.steps(1);
        for page in (0..400).filter(|page| page % 8 != 0) {
            host.unique(a, pages(0, page..page + 1), 3);
        }
        let mut before = 0;
        for _ in 0..60 {
            host.steps(1);
            let moved = refiled(&mut host) - before;
            assert!(
                moved * 100 <= u64::from(percent) * 400,
                "{moved} pages of 400 at {percent} per cent"
            );
            before += moved;
        }
        // Fifty sharers that are alone fit on seven dups.
        assert_eq!(
            host.number(KsmFile::StableNodeDups),
            7,
            "{percent} per cent"
        );
    }
}

/// A sharer that cannot follow stays where it was, and is counted there.
#[test]
fn a_page_that_cannot_be_refiled_stays_where_it_was() {
    let (mut host, a) = fragmented(100);
    host.set(KsmFile::SmartScan, "0");
    let before: Vec<_> = counters(&mut host);
    let mut refused = 0;
    let sleep = host.number(KsmFile::SleepMillisecs) + 5;
    let _started = host
        .world
        .write(KsmFile::SleepMillisecs, &sleep.to_string());
    let pid = host.model(a).pid();
    let at = host.world.find(pid).expect("it lives");
    while let Some(order) = host.world.next_order(at) {
        if matches!(order, ksm_engine::order::Order::Remap { .. }) {
            refused += 1;
            host.world
                .process(at)
                .refuse(ksm_engine::order::Outcome::NoMaps);
        }
        host.world.obey(at, None);
        host.world.hear(at);
    }
    assert!(refused > 0);
    host.world.check();
    assert_eq!(refiled(&mut host), 0);
    assert_eq!(counters(&mut host), before);
    host.wake();
    host.world.check();
    assert_eq!(
        host.number(KsmFile::StableNodeDups),
        2,
        "at the next scan they follow"
    );
}

fn counters(host: &mut Host) -> Vec<u64> {
    [
        KsmFile::PagesShared,
        KsmFile::PagesSharing,
        KsmFile::StableNodeChains,
        KsmFile::StableNodeDups,
    ]
    .map(|file| host.number(file))
    .to_vec()
}

/// Scans that an equal page takes to merge if it is registered after this many scans of the first page.
fn scans_to_meet(late: u32) -> Option<u32> {
    let mut host = Host::new(&[]);
    host.world.set_extras(Extras {
        meet_phases: true,
        ..Extras::default()
    });
    host.process_of(1, 7);
    host.start();
    host.steps(late - 1);
    host.process_of(1, 7);
    (1..=80).find(|_| {
        host.steps(1);
        host.number(KsmFile::PagesSharing) > 0
    })
}

/// Measured on the kernel, and without the option here: from 2 scans to never.
#[test]
fn w12_equal_pages_meet_at_the_second_scan_whatever_their_phases() {
    for late in 1..=45 {
        assert_eq!(scans_to_meet(late), Some(2), "registered after scan {late}");
    }
}

#[test]
fn w07_equal_pages_out_of_phase_meet() {
    let mut host = Host::new(&[]);
    host.world.set_extras(Extras {
        meet_phases: true,
        ..Extras::default()
    });
    host.process_of(1, 7);
    host.start();
    host.steps(1);
    let b = host.process_of(1, 9);
    host.steps(22);
    host.fill(b, pages(0, 0..1), 7);
    host.steps(60);
    let merged = host.rows().iter().find(|(_, row)| row[2] != "0");
    let scan = merged.map(|(_, row)| row[0].clone());
    // It is looked at in scans 25 and 34; the other page in none of them.
    assert_eq!(scan.as_deref(), Some("34"));
}

/// A page that has changed since it was last looked at does not merge by what it was.
#[test]
fn a_sleeping_page_that_has_changed_is_no_twin() {
    let mut host = Host::new(&[]);
    host.world.set_extras(Extras {
        meet_phases: true,
        ..Extras::default()
    });
    let a = host.process_of(1, 7);
    host.start();
    host.steps(9);
    host.fill(a, pages(0, 0..1), 8);
    host.process_of(1, 7);
    for _ in 0..3 {
        host.steps(1);
        assert_eq!(host.number(KsmFile::PagesSharing), 0);
    }
}
