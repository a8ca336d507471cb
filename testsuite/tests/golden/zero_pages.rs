//! Pages of zeros, and the kernel's zero page.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::KsmFile;

#[test]
fn s05_pages_of_zeros_are_pages_like_others() {
    let mut host = Host::new(&[]);
    let [a, _] = [(); 2].map(|()| host.process_of(32, 0));
    host.start();
    host.steps(2);
    assert_eq!(host.figures(a).merging_pages, 32);
    host.expect(
        "
        scan                        1    0    0    0   64    0    0    0    64    0    -4096
        scan                        2    1   63    0    0    0    0    0   128    0   253952
        scan                        3    1   63    0    0    0    0    0   192    0   253952
        ",
    );
}

#[test]
fn s06_pages_of_zeros_go_to_the_zero_page() {
    let mut host = Host::new(&[(KsmFile::UseZeroPages, "1")]);
    let [a, _] = [(); 2].map(|()| host.process_of(32, 0));
    host.start();
    host.steps(2);
    let figures = host.figures(a);
    assert_eq!((figures.rmap_items, figures.zero_pages), (0, 32));
    assert_eq!(figures.profit, 131_072);
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0   64    0    0    0    64    0    -4096
        scan                        2    0    0    0   64   64    0    0   128    0   258048
        scan                        3    0    0    0    0   64    0    0   128    0   262144
        scan                        4    0    0    0    0   64    0    0   128    0   262144
        ",
    );
}

#[test]
fn s08_pages_that_were_only_read_are_none_of_ours() {
    let mut host = Host::new(&[]);
    let a = host.process();
    host.advise(a, pages(0, 0..64));
    host.touch(a, pages(0, 0..64));
    host.start();
    host.steps(1);
    host.fill(a, pages(0, 0..2), 5);
    host.record("2 pages written");
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0    0    0    0    0     0    0        0
        scan                        2    0    0    0    0    0    0    0     0    0        0
        2 pages written             2    0    0    0    0    0    0    0     0    0        0
        scan                        3    0    0    0    2    0    0    0     2    0     -128
        scan                        4    1    1    0    0    0    0    0     4    0     3968
        ",
    );
}

#[test]
fn t14_what_is_merged_stays_so_when_the_zero_page_is_to_be_used() {
    let mut host = Host::new(&[]);
    host.process_of(10, 0);
    host.start();
    host.steps(1);
    host.set(KsmFile::UseZeroPages, "1");
    host.steps(2);
    host.process_of(10, 0);
    host.record("2nd proc 10 zero pages");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    1    9    0    0    0    0    0    20    0    36224
        scan                        3    1    9    0    0    0    0    0    30    0    36224
        scan                        4    1    9    0    0    0    0    0    40    0    36224
        2nd proc 10 zero pages      4    1    9    0    0    0    0    0    40    0    36224
        scan                        5    1    9    0   10    0    0    0    60    0    35584
        scan                        6    1    9    0   10   10    0    0    80    0    76544
        scan                        7    1    9    0    0   10    0    0    90    0    77184
        ",
    );
}

#[test]
fn t15_a_process_with_zero_pages_ends() {
    let mut host = Host::new(&[(KsmFile::UseZeroPages, "1")]);
    host.process_of(10, 0);
    let b = host.process_of(6, 0);
    host.start();
    host.steps(2);
    host.exit(b);
    host.record("w2 exits");
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0   16    0    0    0    16    0    -1024
        scan                        2    0    0    0   16   16    0    0    32    0    64512
        scan                        3    0    0    0    0   16    0    0    32    0    65536
        w2 exits                    3    0    0    0    0   10    0    0    32    0    40960
        scan                        4    0    0    0    0   10    0    0    32    0    40960
        ",
    );
}

#[test]
fn t15b_zero_pages_are_counted_live_in_parent_and_child() {
    let mut host = Host::new(&[(KsmFile::UseZeroPages, "1")]);
    let parent = host.process_of(10, 0);
    host.start();
    host.steps(2);
    let child = host.fork(parent);
    host.record("forked");
    let figures = host.figures(child);
    assert_eq!((figures.zero_pages, figures.profit), (10, 40960));
    host.steps(2);
    host.fill(child, pages(0, 0..1), 1);
    host.record("child writes 1");
    host.fill(parent, pages(0, 1..2), 1);
    host.record("parent writes 1");
    host.exit(child);
    host.record("child exits");
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    0    0    0   10   10    0    0    20    0    40320
        scan                        3    0    0    0    0   10    0    0    20    0    40960
        forked                      3    0    0    0    0   20    0    0    20    0    81920
        scan                        4    0    0    0    0   20    0    0    20    0    81920
        scan                        5    0    0    0    0   20    0    0    20    0    81920
        child writes 1              5    0    0    0    0   19    0    0    20    0    77824
        parent writes 1             5    0    0    0    0   18    0    0    20    0    73728
        child exits                 5    0    0    0    0    9    0    0    20    0    36864
        ",
    );
}

#[test]
fn t15c_zero_pages_are_unmerged() {
    let mut host = Host::new(&[(KsmFile::UseZeroPages, "1")]);
    let a = host.process_of(10, 0);
    host.start();
    host.steps(2);
    host.unadvise(a, pages(0, 0..4));
    host.record("4 unmergeable");
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0   10    0    0    0    10    0     -640
        scan                        2    0    0    0   10   10    0    0    20    0    40320
        scan                        3    0    0    0    0   10    0    0    20    0    40960
        4 unmergeable               3    0    0    0    0    6    0    0    20    0    24576
        scan                        4    0    0    0    0    6    0    0    20    0    24576
        ",
    );
}
