//! Monitoring programs of the distribution: atop (package `atop`), munin's plugin for memory (`munin-plugins-core`), and the
//! script that comes with collectd (`collectd-core`). Each shows what was merged.

use super::KIT;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use testsuite::daemon::Daemon;
use testsuite::programs::{Background, installed, installed_files, said, show};
use testsuite::wait::until_true;
use testsuite::worker::{Content, Worker};

const MUNIN: &str = "/usr/share/munin/plugins/memory";
/// Unpacked by `install-programs`.
const COLLECTD: &str = "/var/lib/ksmfs-testsuite/collectd/exec-ksm.sh";

/// Three processes with the same 100 different pages: 100 pages are shared by 200 others.
fn merged() -> (Daemon, [Worker; 3]) {
    let daemon = Daemon::start(KIT);
    let mut workers = [(); 3].map(|()| Worker::start(KIT, &daemon.socket(), 0, 100));
    for worker in &mut workers {
        worker.fill(0, 100, Content::Each(1));
    }
    daemon.scan_fast();
    until_true("the pages to merge", || {
        ["pages_shared", "pages_sharing"].map(|file| daemon.number(file)) == [100, 200]
    });
    (daemon, workers)
}

#[test]
fn atop_shows_what_is_shared() {
    if !installed(&["atop"]) {
        return;
    }
    let (daemon, _workers) = merged();
    let mut atop = show(&daemon);
    // Without process accounting, which it turns on otherwise.
    atop.args(["atop", "-P", "MEM", "1", "1"])
        .env("ATOPACCT", "");
    let seen = said(&mut atop);
    let line = seen.lines().find(|line| line.starts_with("MEM "));
    let words: Vec<&str> = line.expect("a sample").split(' ').collect();
    // Sharing, shared; then pages of TCP, UDP and page tables.
    assert_eq!(
        words[words.len() - 5..words.len() - 3],
        ["200", "100"],
        "{seen}"
    );
}

#[test]
fn munins_plugin_shows_what_is_saved() {
    if !installed(&["perl"]) || !installed_files(&[Path::new(MUNIN)]) {
        return;
    }
    let (daemon, _workers) = merged();
    let value = |daemon: &Daemon| {
        let seen = said(show(daemon).args(["perl", MUNIN]));
        let value = seen
            .lines()
            .find_map(|line| line.strip_prefix("ksm_sharing.value "));
        value.map(|value| value.trim().to_owned())
    };
    assert_eq!(value(&daemon), Some((200 * 4096).to_string()));
    daemon.write("run", "0");
    assert_eq!(
        value(&daemon),
        None,
        "it shows nothing of what does not run"
    );
}

#[test]
fn collectds_script_reports_the_counters() {
    if !installed_files(&[Path::new(COLLECTD)]) {
        return;
    }
    let (daemon, _workers) = merged();
    daemon.write("run", "0");
    let refused = show(&daemon)
        .args(["bash", COLLECTD])
        .output()
        .expect("it runs");
    assert!(
        !refused.status.success(),
        "it does not report what does not run"
    );
    daemon.write("run", "1");
    let mut command = show(&daemon);
    command
        .args(["bash", COLLECTD])
        .envs([("COLLECTD_HOSTNAME", "here"), ("COLLECTD_INTERVAL", "0.1")]);
    let mut script = Background::start(command.stdout(Stdio::piped()));
    let lines = BufReader::new(script.0.stdout.take().expect("piped")).lines();
    let seen: Vec<String> = lines.take(8).map(|line| line.expect("text")).collect();
    for (name, value) in [
        ("shared", "100"),
        ("saved", "200"),
        ("unshared", "0"),
        ("volatile", "0"),
    ] {
        let wanted =
            format!("PUTVAL \"here/exec-ksm/vmpage_number-{name}\" interval=0.1 N:{value}");
        assert!(seen.contains(&wanted), "{wanted} is not in {seen:?}");
    }
}
