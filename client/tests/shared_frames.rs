//! Looking at the pages of a process leaves the frames that a fork has left it.
//!
//! One test in a program of its own: a fork by another test would share all frames, too.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_engine::order::{OrderRef, Outcome};
use rig::sys::in_fork;
use rig::{Arena, Rig, page};

const PAGES: usize = 64;
/// In a pagemap entry: no other process has the page.
const EXCLUSIVE: u64 = 1 << 56;
/// In such an entry: write-protected by a userfaultfd.
const PROTECTED: u64 = 1 << 57;

#[test]
fn looking_at_pages_leaves_the_frames_that_a_fork_shares() {
    let mut rig = Rig::new();
    let memory = rig.memory(PAGES, page);
    let locked = rig.memory(PAGES, page);
    locked.lock();
    let other = Arena::new(1, PAGES, |i| page(1000 + i));
    // The agent is told of forks by who makes them.
    rig.space.lock_for_fork();
    rig.space.unlock_parent();
    let (wait, go) = rustix::pipe::pipe().unwrap();
    let (said, say) = rustix::pipe::pipe().unwrap();
    let child = std::thread::spawn(move || {
        in_fork(|| {
            rustix::io::write(&say, &[1]).unwrap();
            rustix::io::read(&wait, &mut [0]) == Ok(1)
        })
    });
    rustix::io::read(&said, &mut [0]).unwrap();
    memory.write(7, &page(7));
    let before = memory.pagemap();
    let found = [(); 3].map(|()| (rig.shared_frames(memory.run()), memory.pagemap()));
    let runs = [memory.run()];
    let donated = rig.outcomes(&OrderRef::Donate { runs: &runs }, None);
    let after_donation = memory.pagemap();
    let locked_before = locked.pagemap();
    let compared = rig.map(&locked, 0, PAGES.try_into().unwrap(), &other, 0);
    let locked_after = locked.pagemap();
    rustix::io::write(&go, &[1]).unwrap();
    assert!(child.join().unwrap());
    let exclusive = before.iter().filter(|entry| *entry & EXCLUSIVE != 0);
    assert_eq!(
        exclusive.count(),
        1,
        "the fork shares all but what was written since"
    );
    let frames = |entries: &[u64]| -> Vec<u64> {
        let others = entries.iter().map(|entry| entry & !PROTECTED);
        others.collect()
    };
    for (shared, after) in found {
        assert_eq!(shared, PAGES as u64 - 1);
        let same = frames(&after) == frames(&before);
        assert!(same, "looking moved pages to other frames");
    }
    assert_eq!(donated, [Outcome::Done; PAGES]);
    assert!(
        frames(&after_donation) == frames(&before),
        "donating moved pages to other frames"
    );
    // Locked pages are not moved, but compared where they are.
    assert_eq!(compared, [Outcome::Changed; PAGES]);
    assert!(
        locked_after == locked_before,
        "comparing moved pages to other frames"
    );
}
