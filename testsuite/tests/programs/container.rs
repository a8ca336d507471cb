//! Programs in containers: one side of the connection has no process id that the other side could see.

use super::KIT;
use std::process::Command;
use testsuite::daemon::Daemon;
use testsuite::programs::{Background, exec, installed, ksmfs, preload_library, said};
use testsuite::wait::until_true;

/// Merges pages, waits for so many of them to share, and says its process id.
const SCRIPT: &str = "
import mmap, os, sys, time
memory = mmap.mmap(-1, 100 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_MERGEABLE)
data = b''.join(bytes([i % 10 + 1]) * 4096 for i in range(100))
memory[:] = data
until = time.monotonic() + 60
while int(open('/proc/self/ksm_merging_pages').read()) != int(sys.argv[1]):
    assert time.monotonic() < until, 'nothing merged'
    time.sleep(0.01)
assert memory[:] == data
print(os.getpid())
";

const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--kill-child"];

/// To the program the daemon has the process id 0.
#[test]
fn a_program_in_a_container_merges_with_a_daemon_outside() {
    if !installed(&["python3", "unshare"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    daemon.scan_fast();
    let seen =
        said(
            exec(&daemon)
                .args(CONTAINER)
                .args(["--mount-proc", "python3", "-c", SCRIPT, "100"]),
        );
    assert_eq!(seen, "1\n");
}

/// To the daemon the program has the process id 0: it cannot be let in, and that harms neither.
#[test]
fn a_program_outside_of_the_daemons_container_runs_unmerged() {
    if !installed(&["python3", "unshare"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (mount, socket) = (dir.path().join("ksm"), dir.path().join("socket"));
    std::fs::create_dir(&mount).expect("own directory");
    // It has no mount namespace of its own, so that its mount is seen.
    let mut inside = Command::new(CONTAINER[0]);
    inside.args(&CONTAINER[1..]);
    inside.arg(ksmfs()).arg("mount").arg(&mount);
    let mut daemon = Background::start(inside.arg("--socket").arg(&socket));
    until_true("the daemon to listen", || socket.exists());
    for _ in 0..2 {
        let mut outside = Command::new("python3");
        outside
            .env("LD_PRELOAD", preload_library())
            .env("KSMFS_SOCKET", &socket);
        said(outside.args(["-c", SCRIPT, "0"]));
        assert!(daemon.runs(), "the daemon has ended");
    }
    let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
    daemon.end();
}
