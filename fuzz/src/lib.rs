//! What the fuzz targets do with the bytes that they are given.
//!
//! `fuzz_targets/` gives them to libFuzzer; `testsuite/tests/fuzzing.rs` includes this file, and replays the corpus with the
//! stable toolchain. A target panics when anything is wrong.

mod agent;
mod bytes;
mod engine;
mod host;
mod knobs;
mod store;
mod tree;
mod wire;

/// Names of all targets, which are the names of their corpora too.
pub const TARGETS: [&str; 6] = ["to_daemon", "to_agent", "knobs", "tree", "engine", "host"];

/// Gives `data` to a target.
///
/// # Panics
/// When the target finds something wrong, or there is no such target.
pub fn run(target: &str, data: &[u8]) {
    match target {
        "to_daemon" => wire::to_daemon(data),
        "to_agent" => wire::to_agent(data),
        "knobs" => knobs::run(data),
        "tree" => tree::run(data),
        "engine" => engine::run(data),
        "host" => host::run(data),
        _ => panic!("no target {target}"),
    }
}
