//! Domains never mix, and nobody can change a merged page.

use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const NOBODY: u32 = 65534;
const GAMES: u32 = 5;

#[test]
fn users_never_share_a_page() {
    let daemon = Daemon::start(KIT);
    let mut workers: Vec<Worker> = [0, 0, NOBODY, NOBODY, GAMES]
        .into_iter()
        .map(|uid| Worker::start(KIT, &daemon.socket(), uid, 100))
        .collect();
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 100, Content::Each(1)));
    daemon.scan_fast();
    until_true("each user's own pages to merge", || {
        daemon.number("pages_sharing") == 200
    });
    daemon.wait_scans(4);
    // Two users with two processes each: two merged copies of everything. The fifth has nobody to share with.
    assert_eq!(daemon.number("pages_sharing"), 200);
    assert_eq!(daemon.number("pages_shared"), 200);
    assert_eq!(workers[4].merged(), 0);
    let arenas: Vec<Vec<u64>> = workers
        .iter()
        .map(|worker| arena_inodes(worker.pid()))
        .collect();
    for root in &arenas[..2] {
        for other in &arenas[2..] {
            assert!(
                root.iter().all(|inode| !other.contains(inode)),
                "an arena of two users"
            );
        }
    }
    workers.iter_mut().for_each(Worker::verify);
}

fn arena_inodes(pid: u32) -> Vec<u64> {
    let process = procfs::process::Process::new(i32::try_from(pid).expect("a pid"));
    let maps = process
        .and_then(|process| process.maps())
        .expect("own child");
    maps.iter()
        .filter(|map| ksmfs::footprint::is_arena(map))
        .map(|map| map.inode)
        .collect()
}

#[test]
fn an_app_cannot_write_to_an_arena_it_maps() {
    let daemon = Daemon::start(KIT);
    let mut workers: Vec<Worker> = (0..2)
        .map(|_| Worker::start(KIT, &daemon.socket(), 0, 50))
        .collect();
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 50, Content::Each(1)));
    daemon.scan_fast();
    until_true("merging", || daemon.number("pages_sharing") == 50);
    let tried: usize = workers[0].ask("attack-arenas").parse().expect("a number");
    assert!(tried > 0, "there was an arena to attack");
    workers.iter_mut().for_each(Worker::verify);
}
