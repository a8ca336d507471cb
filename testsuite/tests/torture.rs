//! Everything at once: the torture program on this project's library, whose daemon is killed now and then, and the same
//! program on the kernel's KSM, which tests the program.
//!
//! `TORTURE_SECONDS` says for how long (an hour: 3600), `TORTURE_SEED` what is drawn.

use std::process::{Child, Command};
use std::time::Duration;
use testsuite::content::mix;
use testsuite::daemon::Daemon;
use testsuite::kernel::KernelKsm;
use testsuite::programs::preload_library;

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const TORTURE: &str = env!("CARGO_BIN_EXE_torture");

fn of_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}")))
}

fn torture(seconds: u64) -> Command {
    let seconds = of_environment("TORTURE_SECONDS").unwrap_or(seconds);
    let seed = of_environment("TORTURE_SEED").unwrap_or(6);
    let mut command = Command::new(TORTURE);
    command.args(["run", &seconds.to_string(), &seed.to_string()]);
    command
}

/// Ended with the test, and its apps with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_byte_is_lost_whatever_happens_at_once() {
    let mut daemon = Daemon::start(KIT);
    let torture = torture(20)
        .env("KSM_DIR", daemon.mount())
        .env("KSM_DIR_COMES_AND_GOES", "yes")
        .env("LD_PRELOAD", preload_library())
        .env("KSMFS_SOCKET", daemon.socket())
        .spawn();
    let mut torture = Running(torture.expect("it starts"));
    let status = (1..).find_map(|death| {
        std::thread::sleep(Duration::from_millis(1000 + mix(death) % 3000));
        daemon.kill();
        daemon.restart();
        torture.0.try_wait().expect("own child")
    });
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[test]
#[ignore = "open: seen failing once in a minute on a busy machine (docs/RELIABILITY.md)"]
fn the_kernel_loses_none_either() {
    if !KernelKsm::exists() {
        assert!(std::env::var_os("CI").is_none(), "the kernel has no KSM");
        eprintln!("the kernel has no KSM: nothing was tried");
        return;
    }
    let ksm = KernelKsm::take().expect("the kernel's KSM");
    let torture = torture(10).env("KSM_DIR", ksm.path()).spawn();
    let mut torture = Running(torture.expect("it starts"));
    let status = torture.0.wait().expect("own child");
    assert!(status.success(), "{status}");
}
