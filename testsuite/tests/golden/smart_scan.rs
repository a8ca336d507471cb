//! Old pages are looked at ever more seldom.

use crate::host::{Host, Pid};
use crate::scenario::pages;
use ksm_engine::knobs::KsmFile;

/// Position of a column in a row.
const FULL_SCANS: usize = 0;
const SHARING: usize = 2;
const UNSHARED: usize = 3;
const SKIPPED: usize = 9;

/// The scans of the rows in which `column` was not zero.
fn scans_with(host: &mut Host, column: usize) -> Vec<u64> {
    let rows = host.rows().iter();
    rows.filter(|(_, row)| row[column] != "0")
        .map(|(_, row)| row[FULL_SCANS].parse().expect("a number"))
        .collect()
}

#[test]
fn t05_when_a_page_is_looked_at() {
    let mut host = Host::new(&[]);
    host.process_of_unique(10, 7);
    host.start();
    host.steps(31);
    let skipped: Vec<&str> = host
        .rows()
        .iter()
        .map(|(_, row)| row[SKIPPED].as_str())
        .collect();
    let pairs = (2..).zip(skipped.windows(2));
    let scans_with_skips: Vec<u32> = pairs
        .filter(|(_, p)| p[0] != p[1])
        .map(|(s, _)| s)
        .collect();
    assert_eq!(
        scans_with_skips,
        [
            5, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 30, 31
        ]
    );
    assert_eq!(scans_with(&mut host, UNSHARED), [2, 3, 4, 6, 9, 14, 23, 32]);
    host.rows().drain(10..31);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    0    0   10    0    0    0    0    20    0     -640
        scan                        3    0    0   10    0    0    0    0    30    0     -640
        scan                        4    0    0   10    0    0    0    0    40    0     -640
        scan                        5    0    0    0   10    0    0    0    40   10     -640
        scan                        6    0    0   10    0    0    0    0    50   10     -640
        scan                        7    0    0    0   10    0    0    0    50   20     -640
        scan                        8    0    0    0   10    0    0    0    50   30     -640
        scan                        9    0    0   10    0    0    0    0    60   30     -640
        scan                       10    0    0    0   10    0    0    0    60   40     -640
        scan                       32    0    0   10    0    0    0    0    90  230     -640
        ",
    );
}

#[test]
fn w03_ages_stand_still_while_it_is_off() {
    let mut host = Host::new(&[]);
    host.process_of_unique(10, 7);
    host.start();
    host.steps(6);
    host.set(KsmFile::SmartScan, "0");
    host.steps_called(4, "smart=0");
    host.set(KsmFile::SmartScan, "1");
    host.steps_called(10, "smart=1");
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    0    0   10    0    0    0    0    20    0     -640
        scan                        3    0    0   10    0    0    0    0    30    0     -640
        scan                        4    0    0   10    0    0    0    0    40    0     -640
        scan                        5    0    0    0   10    0    0    0    40   10     -640
        scan                        6    0    0   10    0    0    0    0    50   10     -640
        scan                        7    0    0    0   10    0    0    0    50   20     -640
        smart=0                     8    0    0   10    0    0    0    0    60   20     -640
        smart=0                     9    0    0   10    0    0    0    0    70   20     -640
        smart=0                    10    0    0   10    0    0    0    0    80   20     -640
        smart=0                    11    0    0   10    0    0    0    0    90   20     -640
        smart=1                    12    0    0    0   10    0    0    0    90   30     -640
        smart=1                    13    0    0   10    0    0    0    0   100   30     -640
        smart=1                    14    0    0    0   10    0    0    0   100   40     -640
        smart=1                    15    0    0    0   10    0    0    0   100   50     -640
        smart=1                    16    0    0    0   10    0    0    0   100   60     -640
        smart=1                    17    0    0    0   10    0    0    0   100   70     -640
        smart=1                    18    0    0   10    0    0    0    0   110   70     -640
        smart=1                    19    0    0    0   10    0    0    0   110   80     -640
        smart=1                    20    0    0    0   10    0    0    0   110   90     -640
        smart=1                    21    0    0    0   10    0    0    0   110  100     -640
        ",
    );
}

#[test]
fn w06_merged_pages_do_not_age() {
    let mut host = Host::new(&[]);
    let a = host.process();
    host.fill(a, pages(0, 0..2), 7);
    host.fill(a, pages(0, 2..4), 8);
    host.advise(a, pages(0, 0..4));
    host.start();
    host.steps(20);
    host.fill(a, pages(0, 0..1), 8);
    host.record("p0 := 8");
    host.steps(4);
    let rows = host.rows().len();
    host.rows().drain(..rows - 6);
    host.expect(
        "
        scan                       21    2    2    0    0    0    0    0    84    0     7936
        p0 := 8                    21    2    2    0    0    0    0    0    84    0     7936
        scan                       22    2    1    0    1    0    0    0    88    0     3840
        scan                       23    2    2    0    0    0    0    0    92    0     7936
        scan                       24    2    2    0    0    0    0    0    96    0     7936
        scan                       25    2    2    0    0    0    0    0   100    0     7936
        ",
    );
}

fn first_merge(host: &mut Host) -> Option<u64> {
    scans_with(host, SHARING).first().copied()
}

fn become_equal(host: &mut Host, pid: Pid, steps: u32) {
    host.fill(pid, pages(0, 0..1), 7);
    host.record("Y := 7");
    host.steps(steps);
}

#[test]
fn w07_equal_pages_out_of_phase_never_meet() {
    let mut host = Host::new(&[]);
    host.process_of(1, 7);
    host.start();
    host.steps(1);
    let b = host.process_of(1, 9);
    host.steps(22);
    become_equal(&mut host, b, 60);
    let mut unshared = scans_with(&mut host, UNSHARED);
    unshared.dedup();
    assert_eq!(
        unshared,
        [
            2, 3, 4, 5, 6, 8, 9, 11, 14, 16, 23, 32, 34, 41, 43, 50, 52, 59, 61, 68, 70, 77, 79
        ]
    );
    assert_eq!(first_merge(&mut host), None);
    let rows = host.rows().len();
    host.rows().drain(..rows - 2);
    host.expect(
        "
        scan                       83    0    0    0    2    0    0    0    28  136     -128
        scan                       84    0    0    0    2    0    0    0    28  138     -128
        ",
    );
}

#[test]
fn w08_equal_pages_in_phase_meet_late() {
    let mut host = Host::new(&[]);
    host.process_of(1, 7);
    let b = host.process_of(1, 9);
    host.start();
    host.steps(23);
    become_equal(&mut host, b, 30);
    assert_eq!(first_merge(&mut host), Some(41));
    let rows = host.rows().len();
    host.rows().drain(..rows - 2);
    host.expect(
        "
        scan                       53    1    1    0    0    0    0    0    44   62     3968
        scan                       54    1    1    0    0    0    0    0    46   62     3968
        ",
    );
}

#[test]
fn w10_a_late_equal_page() {
    let mut host = Host::new(&[]);
    host.process_of(1, 7);
    host.start();
    host.steps(3);
    host.process_of(1, 7);
    host.record("2nd registered");
    host.steps(12);
    host.expect(
        "
        scan                        1    0    0    0    1    0    0    0     1    0      -64
        scan                        2    0    0    1    0    0    0    0     2    0      -64
        scan                        3    0    0    1    0    0    0    0     3    0      -64
        scan                        4    0    0    1    0    0    0    0     4    0      -64
        2nd registered              4    0    0    1    0    0    0    0     4    0      -64
        scan                        5    0    0    0    2    0    0    0     5    1     -128
        scan                        6    1    1    0    0    0    0    0     7    1     3968
        scan                        7    1    1    0    0    0    0    0     9    1     3968
        scan                        8    1    1    0    0    0    0    0    11    1     3968
        scan                        9    1    1    0    0    0    0    0    13    1     3968
        scan                       10    1    1    0    0    0    0    0    15    1     3968
        scan                       11    1    1    0    0    0    0    0    17    1     3968
        scan                       12    1    1    0    0    0    0    0    19    1     3968
        scan                       13    1    1    0    0    0    0    0    21    1     3968
        scan                       14    1    1    0    0    0    0    0    23    1     3968
        scan                       15    1    1    0    0    0    0    0    25    1     3968
        scan                       16    1    1    0    0    0    0    0    27    1     3968
        ",
    );
}

/// Scans that an equal page takes to merge if it is registered after this many scans of the first page.
fn scans_to_merge(late: u32) -> Option<u32> {
    let mut host = Host::new(&[]);
    host.process_of(1, 7);
    host.start();
    host.steps(late - 1);
    host.process_of(1, 7);
    (1..=80).find(|_| {
        host.steps(1);
        host.number(KsmFile::PagesSharing) > 0
    })
}

#[test]
fn w12_whether_a_late_equal_page_merges_depends_on_when_it_comes() {
    let measured = [
        2, 2, 3, 2, 4, 3, 2, 6, 14, 4, 3, 2, 0, 9, 0, 0, 6, 14, 4, 3, 2, 0, 9, 0, 0, 6, 14, 4, 3,
        2, 0, 9, 0, 0, 6, 14, 4, 3, 2, 0, 9, 0, 0, 6, 14,
    ];
    for (late, scans) in (1..).zip(measured) {
        let never = (scans != 0).then_some(scans);
        assert_eq!(scans_to_merge(late), never, "registered after scan {late}");
    }
}
