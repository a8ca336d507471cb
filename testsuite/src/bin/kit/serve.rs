//! A daemon: what `ksmfs mount` does, in a process that a test may kill.

use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(mount: &Path, socket: &Path, words: &[&str]) -> ExitCode {
    testsuite::sys::end_with_parent();
    let mut signals = match signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("kit: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut options = ksmfs::Options::new(mount, socket);
    options.extras.huge_pages_as_ksmd = words.contains(&"huge-pages-as-ksmd");
    options.versions = crate::versions();
    options.sandbox = words.contains(&"sandbox");
    options.extras.dry_run = words.contains(&"dry-run");
    let policy = words.iter().find_map(|word| word.strip_prefix("policy="));
    match policy
        .map(|path| ksmfs::policy::Policy::load(Path::new(path)))
        .transpose()
    {
        Ok(policy) => options.policy = policy.unwrap_or_default(),
        Err(error) => {
            eprintln!("kit: {error}");
            return ExitCode::FAILURE;
        }
    }
    match ksmfs::mount(&options) {
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
