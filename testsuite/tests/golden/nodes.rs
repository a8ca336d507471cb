//! NUMA nodes: with `merge_across_nodes` = 0 equal pages merge on their own node only.

use crate::host::Host;
use crate::scenario::pages;
use ksm_engine::knobs::{KsmFile, WriteError};
use ksm_engine::page::NumaNode;
use testsuite::sim::Page;

/// Ten equal pages and two that are different, half of each on node 1.
fn two_nodes(merge_across_nodes: &str) -> Host {
    let mut host = Host::new(&[(KsmFile::MergeAcrossNodes, merge_across_nodes)]);
    let a = host.process();
    host.fill(a, pages(0, 0..10), 7);
    host.unique(a, pages(0, 10..12), 3);
    host.model(a).migrate(pages(0, 5..11), NumaNode(1));
    host.advise(a, pages(0, 0..12));
    host
}

#[test]
fn equal_pages_merge_on_their_own_node_only() {
    let mut host = two_nodes("0");
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   12    0    0    0    12    0     -768
        scan                        2    2    8    2    0    0    0    0    24    0    32000
        scan                        3    2    8    2    0    0    0    0    36    0    32000
        ",
    );
}

#[test]
fn across_nodes_they_all_merge() {
    let mut host = two_nodes("1");
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0   12    0    0    0    12    0     -768
        scan                        2    1    9    2    0    0    0    0    24    0    36096
        scan                        3    1    9    2    0    0    0    0    36    0    36096
        ",
    );
}

#[test]
fn one_page_on_each_node_stays_alone() {
    let mut host = Host::new(&[(KsmFile::MergeAcrossNodes, "0")]);
    let [_, b] = [(); 2].map(|()| host.process_of(1, 7));
    host.model(b).migrate(pages(0, 0..1), NumaNode(1));
    host.start();
    host.steps(2);
    host.record("on node 0 again");
    host.model(b).migrate(pages(0, 0..1), NumaNode(0));
    host.steps(1);
    host.expect(
        "
        scan                        1    0    0    0    2    0    0    0     2    0     -128
        scan                        2    0    0    2    0    0    0    0     4    0     -128
        scan                        3    0    0    2    0    0    0    0     6    0     -128
        on node 0 again             3    0    0    2    0    0    0    0     6    0     -128
        scan                        4    1    1    0    0    0    0    0     8    0     3968
        ",
    );
}

/// Each node has its own chain for the same bytes.
#[test]
fn chains_are_of_one_node() {
    let mut host = Host::new(&[
        (KsmFile::MergeAcrossNodes, "0"),
        (KsmFile::MaxPageSharing, "2"),
    ]);
    let a = host.process_of(9, 7);
    host.model(a).migrate(pages(0, 5..9), NumaNode(1));
    host.start();
    host.steps(2);
    host.expect(
        "
        scan                        1    0    0    0    9    0    0    0     9    0     -576
        scan                        2    4    4    1    0    0    2    4    18    0    15808
        scan                        3    4    4    1    0    0    2    4    27    0    15808
        ",
    );
}

#[test]
fn slots_lie_on_the_node_of_their_pages() {
    let mut host = two_nodes("0");
    let a = host.process_of(1, 7);
    host.start();
    host.steps(1);
    let first = pages(0, 0..1).start;
    // Node 0 has the first five and the other process's page, node 1 the rest.
    let slot = host.model(a).page(first);
    assert!(matches!(slot, Some(Page::Merged { .. })));
    assert_eq!(host.number(KsmFile::PagesShared), 2);
    // The model agents fail on an order to map a page to memory of another node.
    host.steps(1);
}

#[test]
fn the_knob_cannot_change_while_pages_are_shared() {
    let mut host = two_nodes("1");
    host.start();
    host.steps(1);
    let busy = Err(WriteError::Busy);
    assert_eq!(host.write(KsmFile::MergeAcrossNodes, "0"), busy);
    host.set(KsmFile::Run, "2");
    host.set(KsmFile::MergeAcrossNodes, "0");
    host.set(KsmFile::Run, "1");
    host.wake_called("scan");
    host.steps(1);
    assert_eq!(host.number(KsmFile::PagesShared), 2);
    assert_eq!(host.number(KsmFile::PagesSharing), 8);
    assert_eq!(host.write(KsmFile::MergeAcrossNodes, "1"), busy);
    host.set(KsmFile::Run, "2");
    host.set(KsmFile::MergeAcrossNodes, "1");
    host.set(KsmFile::Run, "1");
    host.wake_called("scan");
    host.steps(1);
    assert_eq!(host.number(KsmFile::PagesShared), 1);
    assert_eq!(host.number(KsmFile::PagesSharing), 9);
}

/// What the scan knows of pages that are alone is of no use when nodes begin to matter, and no harm.
#[test]
fn the_knob_changes_while_pages_wait_for_a_twin() {
    let mut host = Host::new(&[(KsmFile::PagesToScan, "1")]);
    let [a, _] = [(); 2].map(|()| host.process_of(1, 7));
    // As long as nodes do not matter it waits in the one tree, which is that of node 0.
    host.model(a).migrate(pages(0, 0..1), NumaNode(1));
    host.set(KsmFile::Run, "1");
    // The first page waits since a moment, the second one comes next.
    while host.number(KsmFile::PagesUnshared) == 0 {
        host.wake();
    }
    host.set(KsmFile::MergeAcrossNodes, "0");
    for _ in 0..6 {
        host.wake_called("wake");
        assert_eq!(host.number(KsmFile::PagesShared), 0);
    }
    host.set(KsmFile::MergeAcrossNodes, "1");
    for _ in 0..6 {
        host.wake_called("wake");
    }
    assert_eq!(host.number(KsmFile::PagesSharing), 1);
}

/// An arena that was made for pages of all nodes takes none of one node, and is not kept for nothing.
#[test]
fn arenas_do_not_outlive_the_rule_that_they_were_made_for() {
    let mut host = Host::new(&[]);
    let a = host.process_of(4, 7);
    host.start();
    host.steps(1);
    host.unique(a, pages(0, 0..4), 3);
    host.steps(1);
    let dead = |host: &mut Host| host.world.engine().counters().slots_dead;
    assert_eq!(dead(&mut host), 1);
    host.set(KsmFile::MergeAcrossNodes, "0");
    host.steps(1);
    assert_eq!(dead(&mut host), 0);
}
