//! QEMU (package `qemu-system-x86`): two guests with a Debian kernel and busybox, emulated, since a test machine is often
//! a guest itself. QEMU makes their memory mergeable; their disks are opened with `O_DIRECT` (cache=none), so the
//! host reads and writes right in it.

use super::{daemon, script};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use testsuite::content::page;
use testsuite::daemon::Daemon;
use testsuite::programs::{Background, exec, installed, said};
use testsuite::wait::until_true;

/// Kernel and modules, unpacked by `install-programs`.
const PARTS: &str = "/var/lib/ksmfs-testsuite/guest";

struct Guest {
    // Ends before its pipes do.
    machine: Background,
    orders: ChildStdin,
    console: BufReader<ChildStdout>,
}

impl Guest {
    fn start(daemon: &Daemon, initrd: &Path, disk: &Path) -> Self {
        let mut qemu = exec(daemon);
        qemu.args([
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-machine",
            "q35",
            "-m",
            "192",
            "-nodefaults",
        ]);
        qemu.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
        qemu.args([
            "-kernel",
            &format!("{PARTS}/vmlinuz"),
            "-append",
            "console=ttyS0 quiet panic=-1",
        ]);
        qemu.arg("-initrd").arg(initrd);
        qemu.args([
            "-drive",
            &format!("file={},format=raw,if=virtio,cache=none", disk.display()),
        ]);
        let mut machine = Background::start(qemu.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let orders = machine.0.stdin.take().expect("piped");
        let console = BufReader::new(machine.0.stdout.take().expect("piped"));
        Self {
            machine,
            orders,
            console,
        }
    }

    /// What it says that begins with `topic`.
    fn hears(&mut self, topic: &str) -> String {
        let mut all = String::new();
        loop {
            let from = all.len();
            let len = self.console.read_line(&mut all).expect("a console");
            assert!(len > 0, "the guest ended: {all}");
            if let Some(said) = all[from..].trim().strip_prefix(topic) {
                return said.trim().to_owned();
            }
        }
    }

    fn asked(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("a console");
        self.hears(&format!("{order}:"))
    }
}

fn make_initrd(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).expect("own directory");
    for name in ["dev", "proc", "data"] {
        fs::create_dir(root.join(name)).expect("own directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("it is installed");
    for part in fs::read_dir(PARTS).expect("install-programs made it") {
        let part = part.expect("an entry").path();
        if part.extension().is_some_and(|extension| extension == "ko") {
            fs::copy(&part, root.join(part.file_name().expect("a name"))).expect("own directory");
        }
    }
    fs::copy(script("guest-init"), root.join("init")).expect("own directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("init"), mode).expect("own directory");
    let initrd = dir.join("initrd");
    let pack = "find . | busybox cpio -o -H newc 2>/dev/null";
    let file = File::create(&initrd).expect("own directory");
    let mut made = Command::new("sh");
    made.args(["-c", pack]).current_dir(&root).stdout(file);
    assert!(made.status().expect("it runs").success());
    initrd
}

fn checksum(file: &Path) -> String {
    let stdin = File::open(file).expect("own file");
    said(Command::new("sha256sum").stdin(stdin))
        .trim()
        .to_owned()
}

#[test]
fn two_guests_share_their_memory_and_both_still_answer() {
    if !installed(&["qemu-system-x86_64", "busybox"]) {
        return;
    }
    let daemon = daemon();
    // O_DIRECT wants a real file system.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let initrd = make_initrd(dir.path());
    let disks = [1, 2].map(|number| {
        let disk = dir.path().join(format!("disk{number}"));
        let pages = (0..2048).flat_map(|n| page(number * 10_000 + n));
        fs::write(&disk, pages.collect::<Vec<u8>>()).expect("own directory");
        disk
    });
    let mut guests = disks
        .each_ref()
        .map(|disk| Guest::start(&daemon, &initrd, disk));
    for guest in &mut guests {
        guest.hears("guest ready");
    }
    // 16 equal files of 2 MB in each of them, and two equal kernels.
    until_true("the guests' memory to merge", || {
        daemon.number("pages_sharing") > 10_000
    });
    for round in 0..3 {
        for (guest, disk) in guests.iter_mut().zip(&disks) {
            assert_eq!(guest.asked("memory"), "0 files wrong");
            assert_eq!(guest.asked("disk"), checksum(disk), "read in round {round}");
            assert_eq!(guest.asked("write"), "done");
            assert_eq!(
                guest.asked("disk"),
                checksum(disk),
                "written in round {round}"
            );
        }
        daemon.wait_scans(1);
    }
    let written = fs::read(&disks[0]).expect("own file");
    let busybox = fs::read("/bin/busybox").expect("it is installed");
    assert!(written.starts_with(&busybox), "what the guest wrote");
    until_true("what was written to merge again", || {
        daemon.number("pages_sharing") > 10_000
    });
    for guest in &mut guests {
        writeln!(guest.orders, "off").expect("a console");
        until_true("the guest to power off", || !guest.machine.runs());
    }
}
