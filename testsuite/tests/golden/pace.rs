//! Batches, and the order of the scan.

use crate::host::{Host, Pid};
use ksm_engine::knobs::KsmFile;

#[test]
fn t12_ten_pages_at_a_time() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "10")]);
    host.process_of_unique(100, 7);
    host.set(KsmFile::Run, "1");
    host.record("wake 1");
    for wake in 2..25 {
        host.wake_called(&format!("wake {wake}"));
    }
    host.expect(
        "
        wake 1                      0    0    0    0   10    0    0    0    10    0     -640
        wake 2                      0    0    0    0   20    0    0    0    20    0    -1280
        wake 3                      0    0    0    0   30    0    0    0    30    0    -1920
        wake 4                      0    0    0    0   40    0    0    0    40    0    -2560
        wake 5                      0    0    0    0   50    0    0    0    50    0    -3200
        wake 6                      0    0    0    0   60    0    0    0    60    0    -3840
        wake 7                      0    0    0    0   70    0    0    0    70    0    -4480
        wake 8                      0    0    0    0   80    0    0    0    80    0    -5120
        wake 9                      0    0    0    0   90    0    0    0    90    0    -5760
        wake 10                     0    0    0    0  100    0    0    0   100    0    -6400
        wake 11                     1    0    0    0  100    0    0    0   100    0    -6400
        wake 12                     1    0    0   10   90    0    0    0   110    0    -6400
        wake 13                     1    0    0   20   80    0    0    0   120    0    -6400
        wake 14                     1    0    0   30   70    0    0    0   130    0    -6400
        wake 15                     1    0    0   40   60    0    0    0   140    0    -6400
        wake 16                     1    0    0   50   50    0    0    0   150    0    -6400
        wake 17                     1    0    0   60   40    0    0    0   160    0    -6400
        wake 18                     1    0    0   70   30    0    0    0   170    0    -6400
        wake 19                     1    0    0   80   20    0    0    0   180    0    -6400
        wake 20                     1    0    0   90   10    0    0    0   190    0    -6400
        wake 21                     1    0    0  100    0    0    0    0   200    0    -6400
        wake 22                     2    0    0  100    0    0    0    0   200    0    -6400
        wake 23                     2    0    0  100    0    0    0    0   210    0    -6400
        wake 24                     2    0    0  100    0    0    0    0   220    0    -6400
        ",
    );
}

#[test]
fn r02_no_pages_at_a_time() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "0")]);
    host.process_of_unique(10, 7);
    host.set(KsmFile::Run, "1");
    host.record("w1");
    (0..3).for_each(|_| host.wake());
    host.record("w4");
    host.expect(
        "
        w1                          0    0    0    0    0    0    0    0     0    0        0
        w4                          0    0    0    0    0    0    0    0     0    0        0
        ",
    );
}

fn items(host: &mut Host, all: &[Pid]) -> Vec<u64> {
    all.iter()
        .map(|pid| host.figures(*pid).rmap_items)
        .collect()
}

#[test]
fn o01_a_process_that_comes_during_a_scan_waits_for_the_next() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "2")]);
    let [a, b] = [5, 6].map(|seed| host.process_of_unique(4, seed));
    host.set(KsmFile::Run, "1");
    host.record("wake1");
    let all = [a, b, host.process_of_unique(4, 9)];
    let mut seen = vec![(host.number(KsmFile::FullScans), items(&mut host, &all))];
    for _ in 0..12 {
        host.wake();
        seen.push((host.number(KsmFile::FullScans), items(&mut host, &all)));
    }
    let measured = [
        (0, [2, 0, 0]),
        (0, [4, 0, 0]),
        (0, [4, 2, 0]),
        (0, [4, 4, 0]),
        (1, [4, 4, 0]),
        (1, [4, 4, 2]),
        (1, [4, 4, 4]),
        (1, [4, 4, 4]),
        (1, [4, 4, 4]),
        (1, [4, 4, 4]),
        (1, [4, 4, 4]),
        (2, [4, 4, 4]),
        (2, [4, 4, 4]),
    ];
    assert_eq!(seen, measured.map(|(scans, items)| (scans, items.to_vec())));
    host.expect(
        "
        wake1                       0    0    0    0    2    0    0    0     2    0     -128
        ",
    );
}

#[test]
fn o02_a_process_that_comes_between_scans_is_last() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "2")]);
    let [a, b] = [5, 6].map(|seed| host.process_of_unique(4, seed));
    host.set(KsmFile::Run, "1");
    let mut wakes = 1;
    while host.number(KsmFile::FullScans) < 1 {
        host.wake();
        wakes += 1;
    }
    assert_eq!(wakes, 5);
    let all = [a, b, host.process_of_unique(4, 9)];
    let seen: Vec<(u64, u64, Vec<u64>)> = (0..8)
        .map(|_| {
            host.wake();
            let scans = host.number(KsmFile::FullScans);
            (
                scans,
                host.number(KsmFile::PagesUnshared),
                items(&mut host, &all),
            )
        })
        .collect();
    let measured = [
        (1, 2, [4, 4, 0]),
        (1, 4, [4, 4, 0]),
        (1, 6, [4, 4, 0]),
        (1, 8, [4, 4, 0]),
        (1, 8, [4, 4, 2]),
        (1, 8, [4, 4, 4]),
        (2, 8, [4, 4, 4]),
        (2, 8, [4, 4, 4]),
    ];
    assert_eq!(
        seen,
        measured.map(|(scans, unshared, items)| (scans, unshared, items.to_vec()))
    );
}
