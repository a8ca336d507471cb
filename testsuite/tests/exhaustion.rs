//! When something runs out, merging stops and the app notices nothing.

use testsuite::cgroup::MemoryGroup;
use testsuite::daemon::{Daemon, write_knob};
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");

fn pair(daemon: &Daemon, pages: usize) -> Vec<Worker> {
    (0..2)
        .map(|_| Worker::start(KIT, &daemon.socket(), 0, pages))
        .collect()
}

#[test]
fn a_full_map_table_only_stops_merging() {
    let daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 200);
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 200, Content::Each(1)));
    let maps: usize = workers[0].ask("fill-maps").parse().expect("a number");
    assert!(maps > 1000, "the table was filled");
    daemon.scan_fast();
    daemon.wait_scans(5);
    let held_back = workers[0].ask("held-back-by-maps");
    assert_eq!(
        workers[0].merged(),
        0,
        "{maps} maps taken, {held_back} pages held back"
    );
    workers.iter_mut().for_each(Worker::verify);
    workers[0].ask("let-go");
    until_true("merging once there is room", || {
        daemon.number("pages_sharing") == 200
    });
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn the_last_quarter_of_the_map_table_is_the_apps() {
    let daemon = Daemon::start(KIT);
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .expect("a kernel setting")
        .trim()
        .parse()
        .expect("a number");
    // Every other page is equal: each would take a map of its own, and one between it and the next.
    let pages = most;
    let mut workers = pair(&daemon, pages);
    for (seed, worker) in (10..).zip(&mut workers) {
        worker.fill(0, pages, Content::Each(seed));
        for page in (0..pages).step_by(2) {
            worker.tell(&format!("fill {page} 1 each 1"));
            worker.hear();
        }
    }
    daemon.scan_fast();
    until_true("merging to be held back", || {
        workers[0].merged() > 1000 && workers[0].ask("held-back-by-maps") != "0"
    });
    daemon.wait_scans(2);
    let left: usize = workers[0].ask("fill-maps").parse().expect("a number");
    assert!(
        left * 5 >= most,
        "{left} of {most} maps were left to the app"
    );
    workers.iter_mut().for_each(Worker::verify);
}

/// `vm.max_map_count`, set back when it is dropped.
struct MapLimit(String);

impl MapLimit {
    const FILE: &str = "/proc/sys/vm/max_map_count";

    fn set(value: usize) -> Self {
        let old = std::fs::read_to_string(Self::FILE).expect("a kernel setting");
        std::fs::write(Self::FILE, value.to_string()).expect("root");
        Self(old)
    }
}

impl Drop for MapLimit {
    fn drop(&mut self) {
        std::fs::write(Self::FILE, &self.0).expect("root");
    }
}

/// Every other page of 4 GiB in one process is equal to one that is 2 GiB away. With the kernel's usual number of maps as many merge
/// as these allow, the app can still map, and the reason for the others is said; with more maps all of them merge.
#[test]
#[ignore = "takes 6 GiB and a minute or two"]
fn four_gib_of_single_equal_pages_merge_as_far_as_maps_allow() {
    const PAGES: usize = 1 << 20;
    const USUAL: usize = 65530;
    let usual = MapLimit::set(USUAL);
    let daemon = Daemon::start(KIT);
    let mut worker = Worker::start(KIT, &daemon.socket(), 0, PAGES);
    worker.ask(&format!("fill 0 {PAGES} twins"));
    daemon.scan_fast();
    // Two maps for each; the last quarter is the app's, and the last eighth of the others is for longer runs.
    let possible = (USUAL - USUAL / 4) / 8 * 7 / 2;
    until_true("as many to merge as may", || {
        worker.merged() + 64 > possible
    });
    daemon.wait_scans(2);
    let merged = worker.merged();
    let held_back = worker.ask("held-back-by-maps");
    let left: usize = worker.ask("fill-maps").parse().expect("a number");
    println!(
        "{merged} pages merged with {USUAL} maps, {left} of them left, {held_back} times held back"
    );
    assert!(left * 5 >= USUAL, "{left} maps were left to the app");
    assert_ne!(held_back, "0");
    worker.ask("let-go");
    drop(usual);
    let _more = MapLimit::set(2_883_584);
    until_true("all to merge", || worker.merged() == PAGES / 2);
    worker.verify();
}

#[test]
fn a_full_descriptor_table_does_not_matter() {
    let daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 200);
    until_true("agents to be there", || workers[0].ask("agent") != "0");
    workers[0].ask("fill-descriptors");
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 200, Content::Each(1)));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 200);
    workers[0].ask("let-go");
    workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn an_exhausted_address_space_does_no_harm() {
    let daemon = Daemon::start(KIT);
    let mut workers = pair(&daemon, 400);
    until_true("agents to be there", || workers[0].ask("agent") != "0");
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 400, Content::Each(1)));
    workers[0].ask("limit-address-space");
    daemon.scan_fast();
    daemon.wait_scans(5);
    workers.iter_mut().for_each(Worker::verify);
    workers[0].fill(0, 400, Content::Each(2));
    workers.iter_mut().for_each(Worker::verify);
    daemon.write("run", "2");
    workers.iter_mut().for_each(Worker::verify);
}

/// Merged pages of the pair in [`Small`].
const MANY: usize = 16 * 1024;
/// Room for a quarter of the private copies that unmerging them in one process would need.
const ROOM: u64 = 16 << 20;

/// A merged pair of which one is in a memory group with little room.
struct Small {
    workers: Vec<Worker>,
    daemon: Daemon,
    group: MemoryGroup,
}

impl Small {
    fn new(name: &str) -> Self {
        let daemon = Daemon::start(KIT);
        let group = MemoryGroup::create(name).expect("a memory controller");
        let mut workers = pair(&daemon, MANY);
        group.take(workers[0].pid()).expect("moving a process");
        until_true("agents to be there", || workers[0].ask("agent") != "0");
        let agent = workers[0].ask("agent").parse().expect("a pid");
        group.take(agent).expect("moving an agent");
        workers
            .iter_mut()
            .for_each(|worker| worker.fill(0, MANY, Content::Each(1)));
        daemon.scan_fast();
        until_true("merging", || {
            usize::try_from(daemon.number("pages_sharing")).is_ok_and(|sharing| sharing >= MANY)
        });
        let usage = group.usage().expect("usage");
        group.limit(usage + ROOM).expect("a limit");
        Self {
            workers,
            daemon,
            group,
        }
    }

    /// Part of it is merged still, nobody was killed, and every byte is right.
    fn is_consistent(&mut self) {
        self.workers.iter_mut().for_each(Worker::verify);
        let merged = self.workers[0].merged();
        assert!(
            0 < merged && merged < MANY,
            "{merged} pages are merged: what there was room for was unmerged, and no more"
        );
        assert_eq!(self.group.oom_kills().expect("a count"), 0);
    }
}

#[test]
fn unmerging_in_a_small_cgroup_stops_in_time() {
    let mut small = Small::new("ksmfs-test-run");
    let result = write_knob(&small.daemon.mount(), "run", "2");
    let refused = result.expect_err("there is no room");
    assert_eq!(refused.raw_os_error(), Some(12), "ENOMEM");
    assert_eq!(small.daemon.number("run"), 0);
    small.is_consistent();
    // Again, and it stops where it stopped.
    let again = write_knob(&small.daemon.mount(), "run", "2");
    assert_eq!(again.expect_err("still none").raw_os_error(), Some(12));
    small.is_consistent();
    small.group.limit(1 << 40).expect("no limit");
    small.daemon.write("run", "2");
    assert_eq!(small.workers[0].merged(), 0);
    small.workers.iter_mut().for_each(Worker::verify);
}

#[test]
fn taking_memory_back_in_a_small_cgroup_stops_in_time() {
    let mut small = Small::new("ksmfs-test-advice");
    small.daemon.write("run", "0");
    let all = format!("unmergeable 0 {MANY}");
    let refused = small.workers[0].refused(&all);
    assert!(refused.contains("no memory"), "{refused}");
    small.is_consistent();
    small.group.limit(1 << 40).expect("no limit");
    small.workers[0].ask(&all);
    assert_eq!(small.workers[0].merged(), 0);
    small.workers.iter_mut().for_each(Worker::verify);
    // It was not half taken back: it merges as before.
    small.workers[0].ask(&format!("mergeable 0 {MANY}"));
    small.daemon.write("run", "1");
    until_true("merging again", || small.workers[0].merged() == MANY);
    small.workers.iter_mut().for_each(Worker::verify);
}
