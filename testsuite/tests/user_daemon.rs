//! A daemon of a user other than root: mounted by `fusermount3`, for his own processes.
//!
//! On most systems everybody may open `/dev/fuse`; root may let a group open `/dev/userfaultfd`. Here both are so in a
//! mount namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use testsuite::programs::installed;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const USER: u32 = 65534;
const PAGES: usize = 50;

/// As root: devices that the user may open, if he is to. Then as the user: the daemon, and on each line of the input a
/// command with its directory, answered by `ok` and what it says.
const SCRIPT: &str = r#"
for name in $3; do
  mknod "$1/$name" c $(stat -c '%Hr %Lr' /dev/$name) && chmod 666 "$1/$name" && mount --bind "$1/$name" /dev/$name || exit 1
done
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '
  "$2" daemon "$1/m" "$1/s" 2>"$1/log" & daemon=$!
  until cat "$1/m/run" >/dev/null 2>&1; do
    kill -0 $daemon 2>/dev/null || { echo "err $(tail -n 1 "$1/log")"; exit; }
    sleep 0.05
  done
  echo ok
  cd "$1"
  while read -r line; do eval "$line" >said 2>&1; echo "ok $(tr "\n" " " <said)"; done
' sh "$1" "$2"
"#;

/// The script with a directory of the user's.
fn daemon(dir: &Path, devices: &str) -> Command {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    for directory in [dir.to_owned(), dir.join("m")] {
        let _ = std::fs::create_dir(&directory);
        chown(&directory, Some(USER), Some(USER)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh"]);
    command.args([dir.as_os_str(), KIT.as_ref(), devices.as_ref()]);
    command
}

#[test]
fn a_user_mounts_merges_and_unmounts() {
    if !installed(&["fusermount3", "setpriv", "unshare"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut user = Worker::spawn(daemon(dir.path(), "fuse userfaultfd"));
    user.hear();
    let mut apps = [0, 1].map(|_| Worker::start(KIT, &dir.path().join("s"), USER, PAGES));
    for app in &mut apps {
        app.fill(0, PAGES, Content::Each(1));
    }
    user.ask("echo 100000 > m/pages_to_scan; echo 1 > m/sleep_millisecs; echo 1 > m/run");
    until_true("the user's pages to merge", || {
        apps.iter_mut().all(|app| app.merged() == PAGES)
    });
    assert_eq!(user.ask("cat m/pages_sharing"), PAGES.to_string());
    // Nobody else sees the files, root not excepted, and nobody else's processes can join.
    assert_eq!(user.ask("stat -c %a s"), "600");
    apps.iter_mut().for_each(Worker::verify);
    assert_eq!(user.ask("kill $daemon; wait $daemon; echo $?"), "0");
    assert_eq!(user.ask("grep -c \" $PWD/m \" /proc/self/mounts"), "0");
    assert_eq!(user.ask("ls"), "fuse log m said userfaultfd");
    apps.iter_mut().for_each(Worker::verify);
}

/// Without the device that merging needs the files are there, and an app is told what is missing.
#[test]
fn a_user_without_userfaultfd_is_told() {
    if !installed(&["fusermount3", "setpriv", "unshare"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut user = Worker::spawn(daemon(dir.path(), "fuse"));
    user.hear();
    let mut app = Worker::start(KIT, &dir.path().join("s"), USER, PAGES);
    until_true("the app to be told", || {
        app.ask("link").contains("/dev/userfaultfd")
    });
    assert_eq!(user.ask("cat m/run"), "0");
    assert_eq!(user.ask("kill $daemon; wait $daemon; echo $?"), "0");
}
