//! Processes that end, fork, unmap, or want no merging any more.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::KsmFile;

#[test]
fn s18_two_of_three_processes_end() {
    let mut host = Host::new(&[]);
    let [_, b, c] = [(); 3].map(|()| host.process_of(10, 7));
    host.start();
    host.steps(2);
    host.exit(c);
    host.exit(b);
    host.record("after exits");
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   30    0    0    0    30    0    -1920
        scan                        2    1   29    0    0    0    0    0    60    0   116864
        scan                        3    1   29    0    0    0    0    0    90    0   116864
        after exits                 3    1   29    0    0    0    0    0    90    0   116864
        scan                        4    1    9    0    0    0    0    0   100    0    36224
        scan                        5    1    9    0    0    0    0    0   110    0    36224
        ",
    );
}

#[test]
fn s19_all_processes_end() {
    let mut host = Host::new(&[]);
    let [a, b] = [(); 2].map(|()| host.process_of(10, 7));
    host.start();
    host.steps(2);
    host.exit(b);
    host.exit(a);
    host.record("after exits");
    host.wake_called("after wake 1");
    host.wake_called("after wake 2");
    host.process_of_unique(4, 3);
    host.record("new unrelated mm added");
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        scan                        3    1   19    0    0    0    0    0    60    0    76544
        after exits                 3    1   19    0    0    0    0    0    60    0    76544
        after wake 1                4    0    0    0    0    0    0    0    60    0        0
        after wake 2                4    0    0    0    0    0    0    0    60    0        0
        new unrelated mm added      5    0    0    0    4    0    0    0    64    0     -256
        scan                        6    0    0    4    0    0    0    0    68    0     -256
        scan                        7    0    0    4    0    0    0    0    72    0     -256
        ",
    );
}

#[test]
fn s20_a_fork_of_merged_pages() {
    let mut host = Host::new(&[]);
    let parent = host.process_of(10, 7);
    host.start();
    host.steps(2);
    let child = host.fork(parent);
    host.record("after fork");
    assert_eq!(host.figures(child).rmap_items, 0);
    host.steps(3);
    for pid in [parent, child] {
        assert_eq!(host.figures(pid).merging_pages, 10);
        assert_eq!(host.figures(pid).profit, 40_320);
    }
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    1    9    0    0    0    0    0    20    0    36224
        scan                        3    1    9    0    0    0    0    0    30    0    36224
        after fork                  3    1    9    0    0    0    0    0    30    0    36224
        scan                        4    1   19    0    0    0    0    0    50    0    76544
        scan                        5    1   19    0    0    0    0    0    70    0    76544
        scan                        6    1   19    0    0    0    0    0    90    0    76544
        ",
    );
}

#[test]
fn x07_forks_join_beyond_any_limit_and_are_unmerged() {
    let mut host = Host::new(&[]);
    let parent = host.process_of(4, 7);
    host.start();
    host.steps(1);
    let all = [parent, host.fork(parent), host.fork(parent)];
    host.steps(1);
    for pid in all {
        assert_eq!(host.figures(pid).merging_pages, 4);
    }
    host.set(KsmFile::Run, "2");
    host.record("run=2");
    host.expect(
        "
        scan                        1    0    0    0    4    0    0    0     4    0     -256
        scan                        2    1    3    0    0    0    0    0     8    0    12032
        scan                        3    1   11    0    0    0    0    0    20    0    44288
        run=2                       0    0    0    0    0    0    0    0    20    0        0
        ",
    );
}

#[test]
fn t01_the_last_sharer_stays_merged_until_it_writes() {
    let mut host = Host::new(&[]);
    let [a, b, c] = [(); 3].map(|()| host.process_of(1, 7));
    host.start();
    host.steps(2);
    host.exit(c);
    host.exit(b);
    host.record("after exits");
    host.steps(2);
    host.fill(a, pages(0, 0..1), 8);
    host.record("lone writes");
    host.steps(4);
    host.expect(
        "
        scan                        1    0    0    0    3    0    0    0     3    0     -192
        scan                        2    1    2    0    0    0    0    0     6    0     8000
        scan                        3    1    2    0    0    0    0    0     9    0     8000
        after exits                 3    1    2    0    0    0    0    0     9    0     8000
        scan                        4    1    0    0    0    0    0    0    10    0      -64
        scan                        5    1    0    0    0    0    0    0    11    0      -64
        lone writes                 5    1    0    0    0    0    0    0    11    0      -64
        scan                        6    0    0    0    1    0    0    0    12    0      -64
        scan                        7    0    0    1    0    0    0    0    13    0      -64
        scan                        8    0    0    0    1    0    0    0    13    1      -64
        scan                        9    0    0    1    0    0    0    0    14    1      -64
        ",
    );
}

#[test]
fn w04_the_last_sharer_stays_merged_when_the_other_wants_no_merging() {
    let mut host = Host::new(&[]);
    let [_, b] = [(); 2].map(|()| host.process_of(1, 7));
    host.start();
    host.steps(1);
    host.unadvise(b, pages(0, 0..1));
    host.record("b unmergeable");
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0    2    0    0    0     2    0     -128
        scan                        2    1    1    0    0    0    0    0     4    0     3968
        b unmergeable               2    1    1    0    0    0    0    0     4    0     3968
        scan                        3    1    0    0    0    0    0    0     5    0      -64
        scan                        4    1    0    0    0    0    0    0     6    0      -64
        ",
    );
}

#[test]
fn t02b_nothing_mergeable_left() {
    let mut host = Host::new(&[]);
    let a = host.process_of(20, 7);
    host.start();
    host.steps(2);
    host.unmap(a, pages(0, 0..20));
    host.record("after munmap");
    host.wake_called("scan");
    host.wake_called("wake again");
    assert_eq!(host.figures(a).rmap_items, 0);
    host.fill(a, pages(1, 0..2), 5);
    host.advise(a, pages(1, 0..2));
    host.record("re-advised new region");
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        scan                        3    1   19    0    0    0    0    0    60    0    76544
        after munmap                3    1   19    0    0    0    0    0    60    0    76544
        scan                        4    0    0    0    0    0    0    0    60    0        0
        wake again                  4    0    0    0    0    0    0    0    60    0        0
        re-advised new region       5    0    0    0    2    0    0    0    62    0     -128
        scan                        6    1    1    0    0    0    0    0    64    0     3968
        ",
    );
}

#[test]
fn t03_half_of_it_is_not_mergeable_any_more() {
    let mut host = Host::new(&[]);
    let a = host.process_of(20, 7);
    host.start();
    host.steps(2);
    host.unadvise(a, pages(0, 0..10));
    host.record("after unmergeable");
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        scan                        3    1   19    0    0    0    0    0    60    0    76544
        after unmergeable           3    1   19    0    0    0    0    0    60    0    76544
        scan                        4    1    9    0    0    0    0    0    70    0    36224
        scan                        5    1    9    0    0    0    0    0    80    0    36224
        ",
    );
}

#[test]
fn t04_a_region_moves() {
    let mut host = Host::new(&[]);
    let a = host.process_of(10, 7);
    host.start();
    host.steps(2);
    host.move_pages(a, pages(0, 0..10), pages(1, 0..10));
    host.record("after mremap");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    1    9    0    0    0    0    0    20    0    36224
        scan                        3    1    9    0    0    0    0    0    30    0    36224
        after mremap                3    1    9    0    0    0    0    0    30    0    36224
        scan                        4    0    0    0   10    0    0    0    40    0     -640
        scan                        5    1    9    0    0    0    0    0    50    0    36224
        scan                        6    1    9    0    0    0    0    0    60    0    36224
        ",
    );
}

#[test]
fn t41_merged_pages_are_discarded() {
    let mut host = Host::new(&[]);
    let a = host.process_of(20, 7);
    host.start();
    host.steps(2);
    host.discard(a, pages(0, 0..5));
    host.record("dontneed");
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        scan                        3    1   19    0    0    0    0    0    60    0    76544
        dontneed                    3    1   19    0    0    0    0    0    60    0    76544
        scan                        4    1   14    0    0    0    0    0    75    0    56384
        scan                        5    1   14    0    0    0    0    0    90    0    56384
        ",
    );
}

#[test]
fn s21_a_fork_of_pages_that_wait_for_a_twin() {
    let mut host = Host::new(&[]);
    let parent = host.process_of_unique(10, 7);
    host.start();
    host.steps(2);
    host.fork(parent);
    host.record("after fork");
    host.steps(4);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    0    0   10    0    0    0    0    20    0     -640
        scan                        3    0    0   10    0    0    0    0    30    0     -640
        after fork                  3    0    0   10    0    0    0    0    30    0     -640
        scan                        4    0    0   10   10    0    0    0    50    0    -1280
        scan                        5    0    0   10   10    0    0    0    60   10    -1280
        scan                        6    0    0   10   10    0    0    0    80   10    -1280
        scan                        7    0    0   10   10    0    0    0    90   20    -1280
        ",
    );
}

#[test]
fn s21b_a_fork_before_any_scan() {
    let mut host = Host::new(&[]);
    let parent = host.process_of_unique(10, 7);
    let child = host.fork(parent);
    host.start();
    host.steps(4);
    // What is written since is a page of its own.
    host.unique(parent, pages(0, 0..2), 8);
    host.unique(child, pages(0, 0..2), 8);
    host.record("2 pages written");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    0    0   10   10    0    0    0    40    0    -1280
        scan                        3    0    0   10   10    0    0    0    60    0    -1280
        scan                        4    0    0   10   10    0    0    0    80    0    -1280
        scan                        5    0    0    0   20    0    0    0    80   20    -1280
        2 pages written             5    0    0    0   20    0    0    0    80   20    -1280
        scan                        6    0    0    8   12    0    0    0   100   20    -1280
        scan                        7    0    0    0   20    0    0    0   100   40    -1280
        scan                        8    0    0    0   20    0    0    0   100   60    -1280
        ",
    );
}
