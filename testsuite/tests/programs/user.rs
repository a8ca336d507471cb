//! A user without privilege, in the user namespace that `exec` makes, and root's daemon: there the kernel shows neither
//! that it is root's nor whose anything else is.

use super::KIT;
use std::path::Path;
use std::process::Command;
use testsuite::daemon::Daemon;
use testsuite::programs::{installed, ksmfs, said};

const SCRIPT: &str = "
import mmap, os, time
memory = mmap.mmap(-1, 100 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_MERGEABLE)
data = b''.join(bytes([i % 10 + 1]) * 4096 for i in range(100))
memory[:] = data
until = time.monotonic() + 60
while open('/sys/kernel/mm/ksm/pages_sharing').read() != '90\\n':
    assert time.monotonic() < until, 'nothing merged'
    time.sleep(0.01)
assert memory[:] == data
print(os.getuid())
";

#[test]
fn a_users_memory_merges_in_a_user_namespace_with_roots_daemon() {
    if !installed(&["python3", "setpriv"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    daemon.scan_fast();
    // The build directory may be closed to others.
    let dir = tempfile::tempdir().expect("a directory");
    let open = |path: &Path, mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("own directory");
    };
    open(dir.path(), 0o755);
    let library = ksmfs().with_file_name("deps/libksm_preload.so");
    said(
        Command::new("install")
            .args([&ksmfs(), &library])
            .arg(dir.path()),
    );
    let program = dir.path().join("ksmfs");
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65533", "--regid=65533", "--clear-groups"]);
    user.args(["--inh-caps=-all", "--bounding-set=-all", "--"]);
    user.arg(&program)
        .args(["exec", "--socket"])
        .arg(daemon.socket());
    // And once more inside of it.
    user.arg("--")
        .arg(&program)
        .args(["exec", "/usr/bin/python3", "-c", SCRIPT]);
    assert_eq!(said(&mut user), "65533\n");
}
