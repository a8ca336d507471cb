//! Equal pages merge at their second scan; what changes leaves, and what is equal again comes back.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::KsmFile;

#[test]
fn s01_one_process_with_equal_pages() {
    let mut host = Host::new(&[]);
    host.process_of(100, 7);
    host.record("before");
    host.start();
    host.steps(3);
    host.expect(
        "
        before                      0    0    0    0    0    0    0    0     0    0        0
        scan                        1    0    0    0  100    0    0    0   100    0    -6400
        scan                        2    1   99    0    0    0    0    0   200    0   399104
        scan                        3    1   99    0    0    0    0    0   300    0   399104
        scan                        4    1   99    0    0    0    0    0   400    0   399104
        ",
    );
}

#[test]
fn s02_four_processes_with_equal_pages() {
    let mut host = Host::new(&[]);
    let all = [(); 4].map(|()| host.process_of(50, 7));
    host.start();
    host.steps(3);
    for pid in all {
        let figures = host.figures(pid);
        assert_eq!(figures.rmap_items, 50);
        assert_eq!(figures.merging_pages, 50);
        assert_eq!(figures.profit, 201_600);
    }
    host.expect(
        "
        scan                        1    0    0    0  200    0    0    0   200    0   -12800
        scan                        2    1  199    0    0    0    0    0   400    0   802304
        scan                        3    1  199    0    0    0    0    0   600    0   802304
        scan                        4    1  199    0    0    0    0    0   800    0   802304
        ",
    );
}

#[test]
fn s04_unique_pages() {
    let mut host = Host::new(&[]);
    host.process_of_unique(100, 1);
    host.start();
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0  100    0    0    0   100    0    -6400
        scan                        2    0    0  100    0    0    0    0   200    0    -6400
        scan                        3    0    0  100    0    0    0    0   300    0    -6400
        scan                        4    0    0  100    0    0    0    0   400    0    -6400
        ",
    );
}

#[test]
fn s13_three_contents_and_two_sharers_at_most() {
    let mut host = Host::new(&[(KsmFile::MaxPageSharing, "2")]);
    let a = host.process();
    for page in 0..12 {
        host.fill(a, pages(0, page..page + 1), 7 + page % 3);
    }
    host.advise(a, pages(0, 0..12));
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   12    0    0    0    12    0     -768
        scan                        2    6    6    0    0    0    3    6    24    0    23808
        scan                        3    6    6    0    0    0    3    6    36    0    23808
        ",
    );
}

#[test]
fn s22_writing_to_merged_pages() {
    let mut host = Host::new(&[]);
    let a = host.process_of(20, 7);
    host.start();
    host.steps(2);
    host.unique(a, pages(0, 0..5), 9);
    host.record("wrote 5");
    host.steps(4);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        scan                        3    1   19    0    0    0    0    0    60    0    76544
        wrote 5                     3    1   19    0    0    0    0    0    60    0    76544
        scan                        4    1   14    0    5    0    0    0    80    0    56064
        scan                        5    1   14    5    0    0    0    0   100    0    56064
        scan                        6    1   14    0    5    0    0    0   115    5    56064
        scan                        7    1   14    5    0    0    0    0   135    5    56064
        ",
    );
}

#[test]
fn s24_writing_the_same_bytes_to_merged_pages() {
    let mut host = Host::new(&[]);
    let a = host.process_of(20, 7);
    host.start();
    host.steps(2);
    host.fill(a, pages(0, 0..5), 7);
    host.record("rewrote 5");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0   20    0    0    0    20    0    -1280
        scan                        2    1   19    0    0    0    0    0    40    0    76544
        scan                        3    1   19    0    0    0    0    0    60    0    76544
        rewrote 5                   3    1   19    0    0    0    0    0    60    0    76544
        scan                        4    1   19    0    0    0    0    0    80    0    76544
        scan                        5    1   19    0    0    0    0    0   100    0    76544
        scan                        6    1   19    0    0    0    0    0   120    0    76544
        ",
    );
}

#[test]
fn t19_the_page_visited_second_gives_its_bytes() {
    let mut host = Host::new(&[]);
    let a = host.process_of(5, 7);
    host.start();
    host.steps(1);
    let all = pages(0, 0..5);
    let frames: Vec<_> = (all.start..all.end())
        .map(|page| host.frame(a, page))
        .collect();
    assert!(frames[0].is_some());
    assert!(frames.iter().all(|frame| *frame == frames[0]));
    host.expect(
        "
        scan                        1    0    0    0    5    0    0    0     5    0     -320
        scan                        2    1    4    0    0    0    0    0    10    0    16064
        ",
    );
}

#[test]
fn t19b_two_sharers_at_most() {
    let mut host = Host::new(&[(KsmFile::MaxPageSharing, "2")]);
    host.process_of(6, 7);
    host.start();
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0    6    0    0    0     6    0     -384
        scan                        2    3    3    0    0    0    1    3    12    0    11904
        ",
    );
}

#[test]
fn t19c_two_processes_with_a_page_each() {
    let mut host = Host::new(&[]);
    host.process_of(1, 7);
    host.process_of(1, 7);
    host.start();
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0    2    0    0    0     2    0     -128
        scan                        2    1    1    0    0    0    0    0     4    0     3968
        ",
    );
}

/// The same by `munmap`: the mapping is gone, and the daemon is told so, but no scan has passed before the new one.
#[test]
fn t40_a_region_unmapped_and_mapped_anew_with_the_same_bytes() {
    let mut host = Host::new(&[]);
    let a = host.process_of(6, 7);
    host.start();
    host.steps(1);
    host.unmap(a, pages(0, 0..6));
    host.fill(a, pages(0, 0..6), 7);
    host.advise(a, pages(0, 0..6));
    host.steps(1);
    host.unmap(a, pages(0, 0..6));
    host.steps(1);
    host.fill(a, pages(0, 0..6), 7);
    host.advise(a, pages(0, 0..6));
    // The scan has forgotten the pages, so they are new. It was idle, and has begun again at once.
    host.record("scan");
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0    6    0    0    0     6    0     -384
        scan                        2    1    5    0    0    0    0    0    12    0    20096
        scan                        3    1    5    0    0    0    0    0    18    0    20096
        scan                        4    0    0    0    0    0    0    0    18    0        0
        scan                        5    0    0    0    6    0    0    0    24    0     -384
        scan                        6    1    5    0    0    0    0    0    30    0    20096
        ",
    );
}

/// Measured with a new mapping over the old one; that the pages are discarded instead makes no difference.
#[test]
fn t40_a_region_mapped_anew_with_the_same_bytes() {
    for way in [Host::map_anew, Host::discard] {
        let mut host = Host::new(&[]);
        let a = host.process_of(6, 7);
        host.start();
        host.steps(2);
        way(&mut host, a, pages(0, 0..6));
        host.fill(a, pages(0, 0..6), 7);
        host.advise(a, pages(0, 0..6));
        host.record("remapped+refilled");
        host.steps(3);
        host.expect(
            "
        scan                        1    0    0    0    6    0    0    0     6    0     -384
        scan                        2    1    5    0    0    0    0    0    12    0    20096
        scan                        3    1    5    0    0    0    0    0    18    0    20096
        remapped+refilled           3    1    5    0    0    0    0    0    18    0    20096
        scan                        4    1    5    0    0    0    0    0    24    0    20096
        scan                        5    1    5    0    0    0    0    0    30    0    20096
        scan                        6    1    5    0    0    0    0    0    36    0    20096
            ",
        );
    }
}

/// Three processes with 100 pages each: 40 of zeros, 30 of one content, 20 contents that all three have, 10 of their own.
pub fn fill_mixture(host: &mut Host) {
    for process in 0..3 {
        let pid = host.process();
        host.fill(pid, pages(0, 0..40), 0);
        host.fill(pid, pages(0, 40..70), 7);
        for page in 70..90 {
            host.fill(pid, pages(0, page..page + 1), 1000 + page - 70);
        }
        host.unique(pid, pages(0, 90..100), 50 + process);
        host.advise(pid, pages(0, 0..100));
    }
}

/// Read-only and locked regions: the agent merges them in another way, which makes no difference to the counters.
#[test]
fn t21_two_regions_with_equal_pages() {
    let mut host = Host::new(&[]);
    let a = host.process();
    for region in 0..2 {
        host.fill(a, pages(region, 0..5), 7);
        host.advise(a, pages(region, 0..5));
    }
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

#[test]
fn m01_a_mixture() {
    let mut host = Host::new(&[]);
    fill_mixture(&mut host);
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0  300    0    0    0   300    0   -19200
        scan                        2   22  248   30    0    0    0    0   600    0   996608
        scan                        3   22  248   30    0    0    0    0   900    0   996608
        ",
    );
}

/// One page that cannot be moved keeps its equals from merging for as long as it is first.
#[test]
fn t20_a_page_in_a_pipe_among_equal_ones() {
    let mut host = Host::new(&[]);
    let a = host.process_of(4, 7);
    host.splice(a, pages(0, 0..1));
    host.start();
    host.steps(3);
    host.drain(a, pages(0, 0..1));
    host.record("unpinned");
    host.steps(3);
    host.expect(
        "
        scan                        1    0    0    0    4    0    0    0     4    0     -256
        scan                        2    0    0    1    3    0    0    0     8    0     -256
        scan                        3    0    0    1    3    0    0    0    12    0     -256
        scan                        4    0    0    1    3    0    0    0    16    0     -256
        unpinned                    4    0    0    1    3    0    0    0    16    0     -256
        scan                        5    0    0    0    4    0    0    0    16    4     -256
        scan                        6    1    3    0    0    0    0    0    20    4    12032
        scan                        7    1    3    0    0    0    0    0    24    4    12032
        ",
    );
}
