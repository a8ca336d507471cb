//! ksmctl and ksmtuned (package `ksmtuned`): the path is built in, and ksmtuned goes on in the background.

use super::KIT;
use std::fs;
use testsuite::daemon::Daemon;
use testsuite::programs::{installed, said, show};
use testsuite::wait::until;

#[test]
fn ksmctl_starts_and_stops() {
    if !installed(&["ksmctl"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    said(show(&daemon).args(["ksmctl", "start"]));
    assert_eq!(daemon.number("run"), 1);
    said(show(&daemon).args(["ksmctl", "stop"]));
    assert_eq!(daemon.number("run"), 0);
}

#[test]
fn ksmtuned_tunes_every_two_seconds() {
    if !installed(&["ksmtuned", "pgrep", "awk"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    let dir = tempfile::tempdir().expect("a directory");
    let (log, pid_file) = (dir.path().join("log"), dir.path().join("pid"));
    // More memory than there is must stay free: so it boosts each time.
    let mut ksmtuned = show(&daemon);
    ksmtuned.args(["setsid", "ksmtuned"]);
    ksmtuned.envs([("KSM_MONITOR_INTERVAL", "2"), ("KSM_THRES_COEF", "200")]);
    ksmtuned
        .env("DEBUG", "1")
        .env("LOGFILE", &log)
        .env("PIDFILE", &pid_file);
    assert!(ksmtuned.status().expect("it runs").success());
    let pid = fs::read_to_string(&pid_file).expect("its pid file");
    let seen = until("three adjustments", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let line = |l: &str| {
            l.split_once("KSMCTL start ")
                .map(|(_, args)| args.to_owned())
        };
        let seen: Vec<_> = text.lines().filter_map(line).take(3).collect();
        (seen.len() == 3).then_some(seen)
    });
    // It and its current sleep: a session of their own.
    said(std::process::Command::new("pkill").args(["-TERM", "-s", &session(pid.trim())]));
    let sleep = seen[0].split_once(' ').expect("two numbers").1;
    assert_eq!(
        seen,
        [300, 600, 900].map(|pages| format!("{pages} {sleep}"))
    );
    assert_eq!(daemon.number("run"), 1);
    assert!(daemon.number("pages_to_scan") >= 900);
    assert_eq!(daemon.number("sleep_millisecs").to_string(), sleep);
}

fn session(pid: &str) -> String {
    said(std::process::Command::new("ps").args(["-o", "sid=", "-p", pid]))
        .trim()
        .to_owned()
}
