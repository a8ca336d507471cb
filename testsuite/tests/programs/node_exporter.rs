//! The Prometheus node exporter (package `prometheus-node-exporter`), unprivileged, scraped over HTTP.

use super::KIT;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use testsuite::daemon::Daemon;
use testsuite::programs::{Background, installed, show};

/// What it exports, and from which file.
const METRICS: [(&str, &str); 9] = [
    ("node_ksmd_full_scans_total", "full_scans"),
    ("node_ksmd_merge_across_nodes", "merge_across_nodes"),
    ("node_ksmd_pages_shared", "pages_shared"),
    ("node_ksmd_pages_sharing", "pages_sharing"),
    ("node_ksmd_pages_to_scan", "pages_to_scan"),
    ("node_ksmd_pages_unshared", "pages_unshared"),
    ("node_ksmd_pages_volatile", "pages_volatile"),
    ("node_ksmd_run", "run"),
    ("node_ksmd_sleep_seconds", "sleep_millisecs"),
];

#[test]
fn the_metrics_are_what_the_files_say() {
    if !installed(&["prometheus-node-exporter", "setpriv"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    daemon.write("pages_to_scan", "4321");
    daemon.write("sleep_millisecs", "250");
    daemon.write("merge_across_nodes", "0");
    let mut command = show(&daemon);
    command.args([
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--",
    ]);
    command.args(["prometheus-node-exporter", "--collector.disable-defaults"]);
    command.args(["--collector.ksmd", "--web.listen-address=127.0.0.1:0"]);
    let mut exporter = Background::start(command.stderr(Stdio::piped()));
    // Open to the end: it goes on logging, and would die of a closed pipe.
    let mut log = BufReader::new(exporter.0.stderr.take().expect("piped")).lines();
    let address = log
        .by_ref()
        .map(|line| line.expect("its log is text"))
        .find(|line| line.contains("Listening on"))
        .and_then(|line| Some(line.rsplit_once("address=")?.1.to_owned()))
        .expect("it listens");

    let first = scrape(&address);
    assert_eq!(
        first["node_scrape_collector_success{collector=\"ksmd\"}"],
        1.0
    );
    for (metric, file) in METRICS {
        let unit = if file == "sleep_millisecs" {
            1000.0
        } else {
            1.0
        };
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let value = daemon.number(file) as f64;
        assert_eq!(first[metric] * unit, value, "{metric}");
    }
    let found = first.keys().filter(|name| name.starts_with("node_ksmd_"));
    assert_eq!(found.count(), METRICS.len());
    daemon.write("run", "1");
    assert_eq!(scrape(&address)["node_ksmd_run"], 1.0);
    exporter.end();
    drop(log);
}

fn scrape(address: &str) -> BTreeMap<String, f64> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    answer.lines().filter_map(value).collect()
}
