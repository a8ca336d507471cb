//! What a policy makes of users, cgroups and labels: with processes of several users, in several cgroups.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use testsuite::daemon::Daemon;
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const PAGES: usize = 50;
const NOBODY: u32 = 65534;
const GAMES: u32 = 5;

/// A cgroup of version 2, gone with this.
struct Cgroup {
    path: PathBuf,
    name: String,
}

impl Cgroup {
    fn create(name: &str) -> Self {
        let mounts = procfs::process::Process::myself()
            .unwrap()
            .mountinfo()
            .unwrap();
        let mut roots = mounts
            .0
            .into_iter()
            .filter(|mount| mount.fs_type == "cgroup2");
        let root = roots.next().expect("a mounted cgroup2").mount_point;
        let name = format!("ksmfs-{name}-{}", std::process::id());
        let path = root.join(&name);
        std::fs::create_dir(&path).unwrap();
        Self {
            path,
            name: format!("/{name}"),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = rustix::fs::rmdir(&self.path);
    }
}

/// A worker with a label, in a cgroup.
fn worker(socket: &Path, uid: u32, label: &str, cgroup: Option<&Cgroup>) -> Worker {
    let mut command = match cgroup {
        Some(cgroup) => {
            let mut command = Command::new("sh");
            let procs = cgroup.path.join("cgroup.procs");
            let script = format!("echo $$ > {} && exec \"$@\"", procs.display());
            command.args(["-c", &script, "sh", KIT]);
            command
        }
        None => Command::new(KIT),
    };
    command.arg("worker").arg(socket);
    command.args([uid.to_string(), PAGES.to_string()]);
    command.env("KSMFS_LABEL", label);
    let mut worker = Worker::spawn(command);
    worker.hear();
    worker.fill(0, PAGES, Content::Each(1));
    worker
}

/// Who of the workers has merged everything, once nothing more merges.
fn merged(daemon: &Daemon, workers: &mut [Worker], expected: &[bool]) {
    until_true("those who may to merge", || {
        let mut pairs = workers.iter_mut().zip(expected);
        pairs.all(|(worker, merges)| !merges || worker.merged() == PAGES)
    });
    daemon.wait_scans(4);
    for (at, (worker, merges)) in workers.iter_mut().zip(expected).enumerate() {
        assert_eq!(
            worker.merged(),
            if *merges { PAGES } else { 0 },
            "worker {at}"
        );
        worker.verify();
    }
}

#[test]
fn users_are_joined_and_kept_out() {
    let daemon =
        Daemon::start_with_policy(KIT, &format!("merge uid {NOBODY} uid {GAMES}\nnever uid 0"));
    daemon.scan_fast();
    let uids = [NOBODY, GAMES, 0, 0, 1];
    let mut workers = uids.map(|uid| worker(&daemon.socket(), uid, "", None));
    merged(&daemon, &mut workers, &[true, true, false, false, false]);
    assert!(workers[2].ask("link").contains("policy"), "it is told why");
    // One copy of each page for both.
    assert_eq!(daemon.number("pages_shared"), i64::try_from(PAGES).unwrap());
}

#[test]
fn a_user_is_divided_by_cgroups() {
    let (one, two) = (Cgroup::create("one"), Cgroup::create("two"));
    let daemon = Daemon::start_with_policy(KIT, "domains cgroup");
    daemon.scan_fast();
    let here = [
        (NOBODY, &one),
        (NOBODY, &one),
        (NOBODY, &two),
        (GAMES, &one),
    ];
    let mut workers = here.map(|(uid, cgroup)| worker(&daemon.socket(), uid, "", Some(cgroup)));
    merged(&daemon, &mut workers, &[true, true, false, false]);
}

#[test]
fn a_cgroup_joins_its_users() {
    let (one, two) = (Cgroup::create("in"), Cgroup::create("out"));
    let policy = format!("domains none\nmerge cgroup {}", one.name);
    let daemon = Daemon::start_with_policy(KIT, &policy);
    daemon.scan_fast();
    let here = [(NOBODY, &one), (GAMES, &one), (NOBODY, &two), (GAMES, &two)];
    let mut workers = here.map(|(uid, cgroup)| worker(&daemon.socket(), uid, "", Some(cgroup)));
    merged(&daemon, &mut workers, &[true, true, false, false]);
}

/// A new daemon does not know whose pages an old one put into a domain that is not simply a user's: they stay as they are,
/// and what is written anew merges anew.
#[test]
fn a_joined_domain_starts_anew_with_a_new_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy");
    std::fs::write(&policy, format!("merge uid {NOBODY} uid {GAMES}")).unwrap();
    let word = format!("policy={}", policy.display());
    // Taking over needs no right that root's daemon gives up.
    let mut daemon = Daemon::start_as(KIT, &[&word, "sandbox"]);
    daemon.scan_fast();
    let mut workers = [NOBODY, GAMES, 1, 1].map(|uid| worker(&daemon.socket(), uid, "", None));
    merged(&daemon, &mut workers, &[true; 4]);
    daemon.kill();
    // Now the same number is that of another domain, and the user without a word about him is adopted all the same.
    std::fs::write(&policy, format!("merge uid {GAMES} uid 7")).unwrap();
    daemon.restart();
    daemon.scan_fast();
    let pages = i64::try_from(PAGES).unwrap();
    until_true("the user's own pages to be counted again", || {
        daemon.number("pages_shared") == pages && daemon.number("pages_sharing") == pages
    });
    daemon.wait_scans(3);
    assert_eq!(daemon.number("pages_shared"), pages);
    merged(&daemon, &mut workers, &[true; 4]);
    for worker in &mut workers[..2] {
        worker.ask(&format!("discard 0 {PAGES}"));
        worker.fill(0, PAGES, Content::Each(2));
    }
    let mut seven = worker(&daemon.socket(), 7, "", None);
    seven.fill(0, PAGES, Content::Each(2));
    until_true("the newly joined to merge", || {
        workers[1].merged() == PAGES && seven.merged() == PAGES
    });
    daemon.wait_scans(3);
    assert_eq!(workers[0].merged(), 0);
    workers.iter_mut().for_each(Worker::verify);
    seven.verify();
}

/// A daemon that knows no labels would put the process in with its user's others.
#[test]
fn who_asks_for_a_label_is_not_merged_by_an_older_daemon() {
    let mut daemon = Daemon::start_speaking(KIT, "4-6");
    daemon.scan_fast();
    let who = [(NOBODY, ""), (NOBODY, "web"), (NOBODY, "")];
    let mut workers = who.map(|(uid, label)| worker(&daemon.socket(), uid, label, None));
    merged(&daemon, &mut workers, &[true, false, true]);
    until_true("the reason to be known", || {
        workers[1]
            .ask("link")
            .contains("no version of the protocol")
    });
    // A newer one that has no such label says so.
    daemon.kill();
    daemon.speak("4-7");
    daemon.restart();
    daemon.scan_fast();
    until_true("the other reason to be known", || {
        workers[1].ask("link").contains("label")
    });
    merged(&daemon, &mut workers, &[true, false, true]);
}

#[test]
fn a_label_joins_those_who_may_have_it() {
    let policy = format!("label web uid {NOBODY} uid {GAMES}\nlabel mail any");
    let daemon = Daemon::start_with_policy(KIT, &policy);
    daemon.scan_fast();
    let who = [
        (NOBODY, "web"),
        (GAMES, "web"),
        (NOBODY, "mail"),
        (NOBODY, ""),
        (0, "web"),
    ];
    let mut workers = who.map(|(uid, label)| worker(&daemon.socket(), uid, label, None));
    merged(&daemon, &mut workers, &[true, true, false, false, false]);
    assert!(workers[4].ask("link").contains("label"), "it is told why");
}

/// The arenas that a daemon holds.
fn arenas(daemon: &Daemon) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links = descriptors.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let is_arena = |link: &PathBuf| link.to_str().unwrap().starts_with("/memfd:ksm-arena");
    links.filter(is_arena).count()
}

/// A user who comes again and again in new cgroups uses nothing up.
#[test]
fn what_a_cgroup_had_is_gone_with_its_last_process() {
    let cgroup = Cgroup::create("short");
    let daemon = Daemon::start_with_policy(KIT, "domains cgroup");
    daemon.scan_fast();
    for _ in 0..3 {
        let both = [0, 1].map(|_| Some(&cgroup));
        let mut workers = both.map(|cgroup| worker(&daemon.socket(), NOBODY, "", cgroup));
        merged(&daemon, &mut workers, &[true, true]);
        assert!(arenas(&daemon) > 0);
        drop(workers);
        until_true("nothing to be left", || {
            arenas(&daemon) == 0 && daemon.number("pages_shared") == 0
        });
    }
}
