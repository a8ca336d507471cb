//! The program `ksmfs`: what it says to bad input, what it leaves behind, and what it puts right at the start.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stage;

use assert_cmd::Command;
use rustix::process::Signal;
use stage::{Daemon, Mounted, Scratch, connect, is_live, program, wait_for};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Runs the program with arguments it must refuse; the one line it says.
fn refused(args: &[&str]) -> String {
    let output = Command::new(program()).args(args).output().unwrap();
    assert!(!output.status.success(), "{args:?} was not refused");
    assert!(output.status.code().is_some(), "{args:?} ended by a signal");
    let stderr = String::from_utf8(output.stderr).unwrap();
    // The log goes to stderr as well; its lines begin with a bracket.
    let said: Vec<_> = stderr
        .lines()
        .filter(|line| !line.starts_with('['))
        .collect();
    assert!(!said.is_empty(), "{args:?}: no word of why");
    said.join("\n")
}

fn refused_mount(scratch: &Scratch, directory: &Path) -> String {
    let socket = scratch.socket();
    let line = refused(&[
        "mount",
        directory.to_str().unwrap(),
        "--socket",
        socket.to_str().unwrap(),
    ]);
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn bad_arguments_are_refused_with_a_hint() {
    for (args, hint) in [
        (&["mount"][..], "<DIRECTORY>"),
        (&["mount", "/tmp", "--rum", "1"], "--run"),
        (&["mount", "/tmp", "--run", "2"], "0..=1"),
        (
            &["mount", "/tmp", "--set", "pages_shared=1"],
            "pages_shared",
        ),
        (&["mount", "/tmp", "--set", "run"], "FILE=VALUE"),
        (&["mount", "/tmp", "--max-peers", "many"], "--max-peers"),
        (&["mont", "/tmp"], "mount"),
    ] {
        let said = refused(args);
        assert!(said.contains(hint), "{args:?}: {said}");
    }
}

#[test]
fn a_mount_point_that_is_none_is_refused_and_nothing_is_left() {
    let scratch = Scratch::new();
    let missing = refused_mount(&scratch, &scratch.path("missing"));
    assert!(
        missing.contains("no such directory") && missing.contains("mkdir"),
        "{missing}"
    );
    fs::write(scratch.path("file"), "").unwrap();
    let file = refused_mount(&scratch, &scratch.path("file"));
    assert!(file.contains("not a directory"), "{file}");
    assert!(!scratch.socket().exists());
}

#[test]
fn a_value_that_its_file_does_not_take_is_refused_and_nothing_is_left() {
    let scratch = Scratch::new();
    let (m, s) = (scratch.mountpoint(), scratch.socket());
    let said = refused(&[
        "mount",
        m.to_str().unwrap(),
        "--socket",
        s.to_str().unwrap(),
        "--set",
        "max_page_sharing=1",
    ]);
    assert!(
        said.contains("max_page_sharing does not take \"1\""),
        "{said}"
    );
    assert!(!scratch.is_mounted() && !scratch.socket().exists());
}

#[test]
fn a_second_daemon_takes_neither_mount_nor_socket_of_the_first() {
    let mounted = Mounted::new();
    let scratch = &mounted.scratch;
    let said = refused_mount(scratch, &scratch.mountpoint());
    assert!(said.contains("already mounted"), "{said}");
    let elsewhere = scratch.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let said = refused_mount(scratch, &elsewhere);
    assert!(said.contains("another daemon is listening"), "{said}");
    assert!(is_live(&scratch.socket()));
    assert_eq!(mounted.read("run"), "0\n");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_socket_path_that_cannot_be_is_refused_and_nothing_is_mounted() {
    let scratch = Scratch::new();
    let long = format!("/{}", "x".repeat(200));
    fs::write(scratch.path("file"), "kept").unwrap();
    let file = scratch.path("file");
    for (socket, hint) in [
        ("/nonexistent/directory/s", "directory exists"),
        (long.as_str(), "too long"),
        (file.to_str().unwrap(), "no socket"),
    ] {
        let mountpoint = scratch.mountpoint();
        let said = refused(&["mount", mountpoint.to_str().unwrap(), "--socket", socket]);
        assert!(said.contains(hint), "{said}");
        assert!(!scratch.is_mounted());
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_user_without_the_device_is_told_what_is_missing() {
    let scratch = Scratch::new();
    // The build directory may be closed to others.
    let copy = scratch.path("ksmfs");
    fs::copy(program(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&copy)
        .arg("mount")
        .arg(scratch.mountpoint())
        .arg("--socket")
        .arg(scratch.socket())
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    // Which of the two is missing first depends on the machine.
    assert!(
        said.contains("/dev/fuse: ") || said.contains("fusermount3 is missing"),
        "{said}"
    );
    assert!(!scratch.socket().exists() && !scratch.is_mounted());
}

/// What `mount` says where `/dev` holds only what `devices` makes (a shell command).
fn refused_with_devices(devices: &str) -> String {
    let scratch = Scratch::new();
    let (program, directory, socket) = (program(), scratch.mountpoint(), scratch.socket());
    let script = format!(
        "mount -t tmpfs none /dev && {devices} && exec {} mount {} --socket {}",
        program.to_str().unwrap(),
        directory.to_str().unwrap(),
        socket.to_str().unwrap(),
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!is_live(&directory) && !socket.exists());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let said: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("ksmfs: "))
        .collect();
    assert_eq!(said.len(), 1, "{stderr}");
    said.join("")
}

#[test]
fn missing_devices_and_old_kernels_are_named_and_nothing_is_left() {
    let fuse = "mknod /dev/fuse c 10 229";
    let line = refused_with_devices("true");
    assert!(
        line.contains("/dev/fuse") || line.contains("/dev/userfaultfd"),
        "{line}"
    );
    let line = refused_with_devices(fuse);
    assert!(line.contains("/dev/userfaultfd"), "{line}");
    // A device that knows nothing of userfaultfds, as a kernel that cannot move pages.
    let line = refused_with_devices(&format!("{fuse} && mknod /dev/userfaultfd c 1 3"));
    assert!(
        line.contains("6.8") || line.contains("userfaultfd"),
        "{line}"
    );
}

#[test]
fn sigterm_and_sigint_leave_neither_mount_nor_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let scratch = Scratch::new();
        let mut daemon = Daemon::start(&scratch);
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{signal:?}");
        assert!(!scratch.is_mounted() && !scratch.socket().exists());
        fs::remove_dir(scratch.mountpoint()).unwrap();
    }
}

#[test]
fn sigterm_ends_the_daemon_even_with_files_open_and_agents_connected() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::start(&scratch);
    let open = File::open(scratch.mountpoint().join("run")).unwrap();
    let _peer = connect(&scratch.socket()).unwrap();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!scratch.is_mounted() && !scratch.socket().exists());
    // Whoever kept a file open gets an error, and does not hang.
    let read = std::os::unix::fs::FileExt::read_at(&open, &mut [0; 8], 0);
    assert!(read.is_err(), "{read:?}");
}

#[test]
fn a_directory_unmounted_by_hand_ends_the_daemon() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::start(&scratch);
    rustix::mount::unmount(scratch.mountpoint(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!scratch.socket().exists());
}

#[test]
fn a_new_daemon_clears_what_a_killed_one_left() {
    let scratch = Scratch::new();
    let mut killed = Daemon::start(&scratch);
    killed.signal(Signal::KILL);
    killed.wait();
    let dead = fs::metadata(scratch.mountpoint());
    assert_eq!(stage::errno(dead), Some(rustix::io::Errno::NOTCONN));
    assert!(scratch.socket().exists() && !is_live(&scratch.socket()));

    let mut second = Daemon::start(&scratch);
    let run = fs::read_to_string(scratch.mountpoint().join("run")).unwrap();
    assert_eq!(run, "0\n");
    let mounts = ksmfs::mountpoint::our_mounts();
    let here = mounts
        .iter()
        .filter(|mount| **mount == scratch.mountpoint());
    assert_eq!(here.count(), 1, "the dead mount is gone, not buried");
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
}

#[test]
fn the_daemon_says_when_it_is_ready() {
    let scratch = Scratch::new();
    let notify = std::os::unix::net::UnixDatagram::bind(scratch.path("notify")).unwrap();
    notify.set_read_timeout(Some(stage::DEADLINE)).unwrap();
    let mut child = std::process::Command::new(program())
        .arg("mount")
        .arg(scratch.mountpoint())
        .arg("--socket")
        .arg(scratch.socket())
        .env("NOTIFY_SOCKET", scratch.path("notify"))
        .spawn()
        .unwrap();
    let mut message = [0; 256];
    let len = notify.recv(&mut message);
    let run = fs::read_to_string(scratch.mountpoint().join("run"));
    let live = is_live(&scratch.socket());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    child.wait().unwrap();
    assert!(message[..len.unwrap()].starts_with(b"READY=1"));
    assert_eq!(run.unwrap(), "0\n");
    assert!(live);
}

#[test]
fn status_speaks_in_words_and_in_json() {
    let mounted = Mounted::new();
    mounted.write("run", "1").unwrap();
    let status = |args: &[&str]| {
        let output = Command::new(program())
            .arg("status")
            .arg(mounted.scratch.mountpoint())
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(status(&[]).contains("scanning and merging (run 1)"));
    let json: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!(json["files"]["run"], 1);
    assert_eq!(json["files"].as_object().unwrap().len(), 24);
    let said = refused(&["status", "/nonexistent"]);
    assert!(said.contains("not a ksm directory"), "{said}");
}

#[test]
fn stopping_in_process_leaves_nothing_even_with_a_file_open() {
    let Mounted { running, scratch } = Mounted::new();
    let _open = File::open(scratch.mountpoint().join("run")).unwrap();
    running.stop();
    assert!(!scratch.is_mounted() && !scratch.socket().exists());
    let again = ksmfs::mount(&scratch.options()).unwrap();
    wait_for("the second daemon to answer", || {
        fs::read_to_string(scratch.mountpoint().join("run")).is_ok_and(|text| text == "0\n")
    });
    again.stop();
}

/// What can be asked of a daemon beyond its files, by the program's own commands.
#[test]
fn processes_scans_and_rest_can_be_asked_for() {
    let daemon = Mounted::new();
    let socket = daemon.scratch.socket();
    let (socket, mount) = (socket.to_str().unwrap(), daemon.scratch.mountpoint());
    let mount = mount.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(program()).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut agent = stage::agent::Agent::join(&daemon.scratch.socket());
    agent.register(1000, 7);
    let pid = std::process::id();
    wait_for("the registration to be known", || {
        let said = run(&["status", mount, "--processes", "--socket", socket, "--json"]);
        let value: serde_json::Value = serde_json::from_str(&said).unwrap();
        let process = &value["processes"][0];
        process["pid"] == pid && process["registered"] == 7
    });
    let words = run(&["status", mount, "--processes", "--socket", socket]);
    assert!(words.contains("NOT MERGED"), "{words}");
    assert!(words.contains(&pid.to_string()), "{words}");
    // With nobody to scan there is nothing to wait for.
    drop(agent);
    run(&["scan", "--socket", socket, "--times", "3"]);
    let said = refused(&["settle", mount]);
    assert!(said.contains("run is 0"), "{said}");
    let nowhere = daemon.scratch.path("nowhere");
    let said = refused(&["scan", "--socket", nowhere.to_str().unwrap()]);
    assert!(said.contains("no daemon there"), "{said}");
}

#[test]
fn the_daemon_gives_up_the_rights_that_it_does_not_need() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::start(&scratch);
    let tasks = format!("/proc/{}/task", daemon.child.id());
    let mut seen = 0;
    for task in fs::read_dir(tasks).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        // CAP_SYS_ADMIN is number 21.
        for set in ["CapEff:", "CapPrm:"] {
            let bits = u64::from_str_radix(&value(set), 16).unwrap();
            assert_eq!(bits & !(1 << 21), 0, "{status}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&value(set), 16).unwrap(), 0, "{status}");
        }
        let bounds = u64::from_str_radix(&value("CapBnd:"), 16).unwrap();
        assert_eq!(bounds & !(1 << 21), 0, "{status}");
        assert_eq!(value("NoNewPrivs:"), "1", "{status}");
        assert_eq!(value("Seccomp:"), "2", "{status}");
        seen += 1;
    }
    assert!(seen >= 3, "{seen} threads");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!scratch.is_mounted() && !scratch.socket().exists());
}

#[test]
fn nothing_is_left_below_the_home_of_another_user() {
    let scratch = Scratch::new();
    let home = scratch.path("");
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let mut daemon = Daemon::start(&scratch);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!scratch.is_mounted() && !scratch.socket().exists());
}

#[test]
fn a_policy_is_checked_line_by_line() {
    let scratch = Scratch::new();
    let path = scratch.path("policy");
    fs::write(&path, "domains user\nmerge uid 1\nnonsense\n").unwrap();
    let name = path.to_str().unwrap();
    let said = refused(&["policy", "check", name]);
    assert!(said.contains(&format!("{name}:2: a single uid")), "{said}");
    assert!(
        said.contains(&format!("{name}:3: unknown statement")),
        "{said}"
    );
    let directory = scratch.mountpoint();
    let mount = ["mount", directory.to_str().unwrap(), "--policy", name];
    assert!(refused(&mount).contains(":2:"), "no daemon starts with it");
    fs::write(&path, "domains cgroup # each container for itself\n").unwrap();
    let mut check = Command::new(program());
    check.args(["policy", "check", name]).assert().success();
}
