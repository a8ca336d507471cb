//! Knobs that are written at odd moments.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::{KsmFile, WriteError};

#[test]
fn t07_limits_cannot_change_while_pages_are_shared() {
    let mut host = Host::new(&[]);
    let a = host.process_of(4, 7);
    host.start();
    host.steps(1);
    let busy = Err(WriteError::Busy);
    assert_eq!(host.write(KsmFile::MaxPageSharing, "100"), busy);
    assert_eq!(host.write(KsmFile::MaxPageSharing, "256"), Ok(()));
    let invalid = Err(WriteError::Invalid);
    assert_eq!(host.write(KsmFile::MaxPageSharing, "1"), invalid);
    assert_eq!(host.write(KsmFile::MergeAcrossNodes, "0"), busy);
    assert_eq!(host.write(KsmFile::MergeAcrossNodes, "1"), Ok(()));
    for (file, value) in [
        (KsmFile::UseZeroPages, "1"),
        (KsmFile::SmartScan, "0"),
        (KsmFile::SmartScan, "1"),
        (KsmFile::UseZeroPages, "0"),
        (KsmFile::Run, "0"),
    ] {
        assert_eq!(host.write(file, value), Ok(()));
    }
    assert_eq!(host.write(KsmFile::MaxPageSharing, "100"), busy);
    assert_eq!(host.write(KsmFile::MergeAcrossNodes, "0"), busy);
    host.unique(a, pages(0, 0..4), 1);
    host.record("all 4 overwritten, no scan");
    assert_eq!(host.write(KsmFile::MaxPageSharing, "100"), busy);
    host.set(KsmFile::Run, "2");
    host.record("run=2");
    for (file, value) in [
        (KsmFile::MaxPageSharing, "100"),
        (KsmFile::MergeAcrossNodes, "0"),
        (KsmFile::MergeAcrossNodes, "1"),
        (KsmFile::MaxPageSharing, "256"),
    ] {
        assert_eq!(host.write(file, value), Ok(()));
    }
    host.expect(
        "
        scan                          1    0    0    0    4    0    0    0     4    0     -256
        scan                          2    1    3    0    0    0    0    0     8    0    12032
        all 4 overwritten, no scan    2    1    3    0    0    0    0    0     8    0    12032
        run=2                         0    0    0    0    0    0    0    0     8    0        0
        ",
    );
}

#[test]
fn t07b_limits_can_change_while_scanning_if_nothing_is_shared() {
    let mut host = Host::new(&[]);
    host.process_of_unique(4, 7);
    host.start();
    host.steps(2);
    host.set(KsmFile::MaxPageSharing, "100");
    host.set(KsmFile::MergeAcrossNodes, "0");
    host.record("after");
    host.steps(2);
    host.set(KsmFile::MergeAcrossNodes, "1");
    host.set(KsmFile::MaxPageSharing, "256");
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0    4    0    0    0     4    0     -256
        scan                        2    0    0    4    0    0    0    0     8    0     -256
        scan                        3    0    0    4    0    0    0    0    12    0     -256
        after                       3    0    0    4    0    0    0    0    12    0     -256
        scan                        4    0    0    4    0    0    0    0    16    0     -256
        scan                        5    0    0    0    4    0    0    0    16    4     -256
        scan                        6    0    0    4    0    0    0    0    20    4     -256
        ",
    );
}

#[test]
fn t09_stopped_counters_stand_still_until_everything_is_unmerged() {
    let mut host = Host::new(&[]);
    let [a, b] = [(); 2].map(|()| host.process_of(10, 7));
    host.start();
    host.steps(1);
    host.set(KsmFile::Run, "0");
    host.record("run=0");
    host.unique(a, pages(0, 0..5), 3);
    host.record("5 written");
    assert_eq!(host.figures(a).merging_pages, 10);
    host.exit(b);
    host.record("proc 2 exits");
    host.set(KsmFile::Run, "2");
    host.record("run=2");
    host.set(KsmFile::Run, "0");
    host.record("run=0 again");
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        run=0                       2    1   19    0    0    0    0    0    40    0    76544
        5 written                   2    1   19    0    0    0    0    0    40    0    76544
        proc 2 exits                2    1   19    0    0    0    0    0    40    0    76544
        run=2                       0    0    0    0    0    0    0    0    40    0        0
        run=0 again                 0    0    0    0    0    0    0    0    40    0        0
        ",
    );
}

#[test]
fn t09b_limits_cannot_change_while_stale_pages_are_shared() {
    let mut host = Host::new(&[]);
    let [a, b] = [(); 2].map(|()| host.process_of(10, 7));
    host.start();
    host.steps(1);
    host.set(KsmFile::Run, "0");
    host.exit(b);
    host.exit(a);
    host.record("both exited, run=0");
    let busy = Err(WriteError::Busy);
    assert_eq!(host.write(KsmFile::MaxPageSharing, "99"), busy);
    host.set(KsmFile::Run, "2");
    host.record("run=2");
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        both exited, run=0          2    1   19    0    0    0    0    0    40    0    76544
        run=2                       0    0    0    0    0    0    0    0    40    0        0
        ",
    );
}

#[test]
fn x06_unmerging_starts_the_count_of_scans_anew() {
    let mut host = Host::new(&[]);
    host.process_of_unique(3, 7);
    host.start();
    host.steps(5);
    host.set(KsmFile::Run, "2");
    host.record("run=2");
    host.set(KsmFile::Run, "1");
    host.wake_called("run=1");
    host.steps(5);
    host.expect(
        "
        scan                        1    0    0    0    3    0    0    0     3    0     -192
        scan                        2    0    0    3    0    0    0    0     6    0     -192
        scan                        3    0    0    3    0    0    0    0     9    0     -192
        scan                        4    0    0    3    0    0    0    0    12    0     -192
        scan                        5    0    0    0    3    0    0    0    12    3     -192
        scan                        6    0    0    3    0    0    0    0    15    3     -192
        run=2                       0    0    0    0    0    0    0    0    15    3        0
        run=1                       1    0    0    0    3    0    0    0    18    3     -192
        scan                        2    0    0    3    0    0    0    0    21    3     -192
        scan                        3    0    0    3    0    0    0    0    24    3     -192
        scan                        4    0    0    3    0    0    0    0    27    3     -192
        scan                        5    0    0    0    3    0    0    0    27    6     -192
        scan                        6    0    0    3    0    0    0    0    30    6     -192
        ",
    );
}

#[test]
fn w01_a_started_scan_does_not_cut_a_sleep_short() {
    let mut host = Host::new(&[]);
    host.process_of_unique(5, 7);
    host.start();
    host.set(KsmFile::Run, "0");
    host.set(KsmFile::Run, "1");
    host.wait(std::time::Duration::from_millis(200));
    host.record("run 0->1 during 3600 s sleep, +200ms");
    host.wake_called("after sleep_millisecs change");
    let sleep = host.read(KsmFile::SleepMillisecs);
    host.set(KsmFile::SleepMillisecs, &sleep);
    host.record("same sleep value rewritten");
    host.expect("
        scan                                    1    0    0    0    5    0    0    0     5    0     -320
        run 0->1 during 3600 s sleep, +200ms    1    0    0    0    5    0    0    0     5    0     -320
        after sleep_millisecs change            2    0    0    5    0    0    0    0    10    0     -320
        same sleep value rewritten              2    0    0    5    0    0    0    0    10    0     -320
        ");
}

#[test]
fn n01_one_node_is_as_good_as_all() {
    let mut host = Host::new(&[(KsmFile::MergeAcrossNodes, "0")]);
    let a = host.process();
    host.fill(a, pages(0, 0..10), 7);
    host.unique(a, pages(0, 10..15), 7);
    host.advise(a, pages(0, 0..15));
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   15    0    0    0    15    0     -960
        scan                        2    1    9    5    0    0    0    0    30    0    35904
        scan                        3    1    9    5    0    0    0    0    45    0    35904
        ",
    );
}
