//! systemd-tmpfiles (package `systemd`): opens without O_TRUNC and writes over what is there.

use super::KIT;
use testsuite::daemon::Daemon;
use testsuite::programs::{installed, said, show};

#[test]
fn values_are_set_at_boot() {
    if !installed(&["systemd-tmpfiles"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    let dir = tempfile::tempdir().expect("a directory");
    let conf = dir.path().join("ksm.conf");
    let set = |lines: &[(&str, &str)]| {
        let line =
            |(file, value): &(_, _)| format!("w /sys/kernel/mm/ksm/{file} - - - - {value}\n");
        std::fs::write(&conf, lines.iter().map(line).collect::<String>()).expect("own directory");
        said(
            show(&daemon)
                .args(["systemd-tmpfiles", "--create"])
                .arg(&conf),
        );
    };
    set(&[("pages_to_scan", "9"), ("run", "1")]);
    assert_eq!(
        (daemon.number("pages_to_scan"), daemon.number("run")),
        (9, 1)
    );
    set(&[("advisor_mode", "scan-time")]);
    let mode = daemon.read("advisor_mode").expect("readable");
    assert_eq!(mode, "none [scan-time]\n");
}
