//! A daemon: what `ksmfs mount` does, in a process that a test may kill.

use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(mount: &Path, socket: &Path) -> ExitCode {
    testsuite::sys::end_with_parent();
    let mut signals = match signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("kit: {error}");
            return ExitCode::FAILURE;
        }
    };
    match ksmfs::mount(&ksmfs::Options::new(mount, socket)) {
        Ok(running) => {
            signals.forever().next();
            running.stop();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kit: {error}");
            ExitCode::FAILURE
        }
    }
}
