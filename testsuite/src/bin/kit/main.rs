//! The programs that the tests run as processes of their own: a daemon, workers that link the client, and the apps of the
//! benchmark.

mod app;
mod attack;
mod exhaust;
mod race;
mod serve;
mod work;

use ksm_engine::wire::{Version, Versions};
use std::path::Path;
use std::process::ExitCode;
use testsuite::daemon::VERSIONS;

/// The versions of the protocol that this process is to speak.
fn versions() -> Versions {
    let wanted = std::env::var(VERSIONS).ok();
    let wanted = wanted.and_then(|text| {
        let (oldest, newest) = text.split_once('-')?;
        Some(Versions {
            oldest: Version(oldest.parse().ok()?),
            newest: Version(newest.parse().ok()?),
        })
    });
    wanted.unwrap_or(Versions::SPOKEN)
}

fn main() -> ExitCode {
    env_logger::init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["daemon", mount, socket, options @ ..] => {
            serve::run(Path::new(mount), Path::new(socket), options)
        }
        ["worker", socket, uid, pages] => {
            let (Ok(uid), Ok(pages)) = (uid.parse(), pages.parse()) else {
                return ExitCode::from(2);
            };
            work::run(Path::new(socket), uid, pages)
        }
        ["app", merger, workload, process, pages, uid] => {
            app::run(merger, [workload, process, pages, uid])
        }
        _ => {
            eprintln!(
                "usage: kit daemon MOUNT SOCKET [huge-pages-as-ksmd] [sandbox] [policy=FILE] | worker SOCKET UID PAGES | app SOCKET|kernel|none WORKLOAD PROCESS PAGES UID"
            );
            ExitCode::from(2)
        }
    }
}
