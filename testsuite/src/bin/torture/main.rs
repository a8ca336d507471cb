//! Everything at once, against whoever merges pages here: this project's library, preloaded, or the kernel's KSM.
//!
//! The program knows of neither: it makes its memory mergeable and turns the knobs in `KSM_DIR`. Several apps with many
//! threads each; every page has one owner, who knows its content and checks all of it, whatever he and others did to it.
//! Contents are few, so that pages merge all the time. From outside apps are stopped, killed, written to, and short of
//! memory. Counts of each kind of action are printed in the end; each must have happened.

mod app;
mod board;
mod children;
mod director;
mod hand;
mod knobs;
mod owner;
mod plot;
mod random;
mod sys;
mod turmoil;
mod watching;
mod writers;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["nothing"] => Ok(()),
        ["hand", app] => number(app).and_then(hand::run),
        ["app", number_of_app, seed, board, life] => number(number_of_app)
            .and_then(|app| app::run(app, number(seed)?, Path::new(board), life)),
        ["run", seconds, seed] => {
            number(seconds).and_then(|seconds| director::run(seconds, number(seed)?))
        }
        _ => Err("usage: torture run SECONDS SEED, with KSM_DIR set".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("torture: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}
