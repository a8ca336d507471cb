//! The programs that the tests run as processes of their own: a daemon, and workers that link the client.

mod attack;
mod clone;
mod exhaust;
mod race;
mod serve;
mod work;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["daemon", mount, socket] => serve::run(Path::new(mount), Path::new(socket)),
        ["worker", socket, uid, pages] => {
            let (Ok(uid), Ok(pages)) = (uid.parse(), pages.parse()) else {
                return ExitCode::from(2);
            };
            work::run(Path::new(socket), uid, pages)
        }
        ["clone", socket, mib, seed] => {
            let (Ok(mib), Ok(seed)) = (mib.parse(), seed.parse()) else {
                return ExitCode::from(2);
            };
            clone::run(socket, mib, seed)
        }
        _ => {
            eprintln!(
                "usage: kit daemon MOUNT SOCKET | worker SOCKET UID PAGES | clone SOCKET|kernel MIB SEED"
            );
            ExitCode::from(2)
        }
    }
}
