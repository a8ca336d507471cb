//! Redis (packages `redis-server`, `redis-tools`) under its own benchmark, all of its memory merged by prctl. Saving
//! forks, so that the child writes out what is merged.

use super::{daemon, script};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testsuite::daemon::Daemon;
use testsuite::programs::{Background, exec, installed, said};
use testsuite::wait::until_true;

struct Redis {
    socket: PathBuf,
    _server: Background,
}

impl Redis {
    fn start(daemon: &Daemon, dir: &Path, name: &str) -> Self {
        let socket = dir.join(name);
        let mut command = exec(daemon);
        command.args([
            "python3",
            &script("merge_any.py"),
            "redis-server",
            "--port",
            "0",
        ]);
        command
            .args(["--save", "", "--enable-debug-command", "yes", "--dir"])
            .arg(dir);
        command.args(["--dbfilename", &format!("{name}.rdb")]);
        command
            .arg("--unixsocket")
            .arg(&socket)
            .stdout(Stdio::null());
        let redis = Self {
            _server: Background::start(&mut command),
            socket,
        };
        until_true("the server to answer", || {
            let mut ping = redis.cli(&["ping"]);
            ping.output().is_ok_and(|answer| answer.stdout == b"PONG\n")
        });
        redis
    }

    fn cli(&self, words: &[&str]) -> Command {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(&self.socket).args(words);
        command
    }

    fn ask(&self, words: &[&str]) -> String {
        said(&mut self.cli(words)).trim().to_owned()
    }
}

#[test]
fn two_servers_under_their_benchmark_share_and_answer_right() {
    if !installed(&["redis-server", "redis-benchmark", "redis-cli", "python3"]) {
        return;
    }
    let daemon = daemon();
    let dir = tempfile::tempdir().expect("a directory");
    let servers = ["one", "two"].map(|name| Redis::start(&daemon, dir.path(), name));
    let digests = servers.each_ref().map(|redis| {
        // 40,000 values of 500 bytes, the same in both.
        redis.ask(&["debug", "populate", "40000", "key", "500"]);
        redis.ask(&["debug", "digest"])
    });
    assert_eq!(digests[0], digests[1]);
    until_true("their data to merge", || {
        daemon.number("pages_sharing") > 2000
    });
    for redis in &servers {
        // Other keys, in another database.
        let mut bench = Command::new("redis-benchmark");
        bench.arg("-s").arg(&redis.socket).args([
            "--dbnum", "1", "-q", "-n", "20000", "-r", "5000", "-d", "200",
        ]);
        said(bench.args(["-t", "set,get,incr,lpush,rpop,lrange_100,mset"]));
        assert_eq!(redis.ask(&["debug", "digest-value", "key:39999"]).len(), 40);
    }
    for redis in &servers {
        redis.ask(&["-n", "1", "flushdb"]);
        assert_eq!(
            redis.ask(&["debug", "digest"]),
            digests[0],
            "after the benchmark"
        );
        redis.ask(&["bgsave"]);
        until_true("the child to save", || {
            redis
                .ask(&["info", "persistence"])
                .contains("rdb_bgsave_in_progress:0")
        });
        assert!(
            redis
                .ask(&["info", "persistence"])
                .contains("rdb_last_bgsave_status:ok")
        );
        redis.ask(&["debug", "reload", "nosave"]);
        assert_eq!(
            redis.ask(&["debug", "digest"]),
            digests[0],
            "what the child saved"
        );
    }
}
