//! What `ksmfs exec` does, done by hand: the library preloaded, and the files mounted for the whole system.

use super::KIT;
use std::process::Command;
use testsuite::daemon::Daemon;
use testsuite::programs::{installed, ksmfs, said};
use testsuite::wait::until_true;

/// Two processes hold the same pages, made mergeable, until they are told to check and end.
const HOLDER: &str = "
import ctypes, mmap, sys
memory = mmap.mmap(-1, 100 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_MERGEABLE)
data = b''.join(bytes([i + 1]) * 4096 for i in range(100))
memory[:] = data
sys.stdin.read()
sys.exit(memory[:] != data)
";

#[test]
fn the_library_can_be_preloaded_by_hand() {
    if !installed(&["python3"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    daemon.scan_fast();
    let library = ksmfs().with_file_name("deps/libksm_preload.so");
    let holders = [0; 2].map(|_| {
        let mut python = Command::new("/usr/bin/python3");
        python
            .args(["-c", HOLDER])
            .stdin(std::process::Stdio::piped());
        python
            .env("LD_PRELOAD", &library)
            .env("KSMFS_SOCKET", daemon.socket());
        python.spawn().expect("it runs")
    });
    until_true("the pages to merge", || {
        daemon.number("pages_sharing") == 100
    });
    for mut holder in holders {
        drop(holder.stdin.take());
        assert!(holder.wait().expect("own child").success());
    }
}

/// A system of its own, as far as mounts and processes go: its first process sees what all of them see.
const SYSTEM: &str = r#"
"$1" mount /sys/kernel/mm/ksm --socket "$2" 2>/dev/null & daemon=$!
until [ -S "$2" ]; do kill -0 $daemon; sleep 0.01; done
ksmctl start
cat /proc/1/root/sys/kernel/mm/ksm/run
ls /proc/1/root/sys/kernel/mm/ksm | wc -l
# Found there by `exec`, which has nothing to mount then, and by `status`.
"$1" exec --socket "$2" --no-preload -- sh -c 'echo 77 > /sys/kernel/mm/ksm/pages_to_scan'
cat /sys/kernel/mm/ksm/pages_to_scan
"$1" status | grep -c 'run 1'
kill $daemon; wait $daemon
stat -fc %T /sys/kernel/mm
"#;

#[test]
fn the_files_can_be_mounted_for_the_whole_system() {
    if !installed(&["unshare", "ksmctl"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut system = Command::new("unshare");
    system.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    system
        .args(["bash", "-ec", SYSTEM, "bash"])
        .arg(ksmfs())
        .arg(dir.path().join("socket"));
    assert_eq!(said(&mut system), "1\n24\n77\n1\nsysfs\n");
}
