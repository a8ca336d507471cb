//! Real programs whose memory is merged, under load and for as long as that takes. docs/PROGRAMS.md lists them.

mod prefork;
mod qemu;
mod redis;
mod stress_ng;

use std::path::Path;
use testsuite::daemon::Daemon;

const KIT: &str = env!("CARGO_BIN_EXE_kit");

/// A daemon that scans fast, but leaves the programs some of the machine.
fn daemon() -> Daemon {
    let daemon = Daemon::start(KIT);
    for (file, value) in [
        ("smart_scan", "0"),
        ("pages_to_scan", "20000"),
        ("sleep_millisecs", "10"),
    ] {
        daemon.write(file, value);
    }
    daemon.write("run", "1");
    daemon
}

/// A program of the tests' own.
fn script(name: &str) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs_slow");
    here.join(name).display().to_string()
}
