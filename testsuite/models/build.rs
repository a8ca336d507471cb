//! Takes in the client's own files, each as it is and with single protections removed.

use std::path::Path;

const SOURCES: &str = "../../client/src";

/// A name, the file, and what is replaced in it.
const BROKEN: [(&str, &str, &str, &str); 8] = [
    (
        "lock_without_waiters_bit",
        "lock.rs",
        "word | WAITERS\n",
        "word\n",
    ),
    (
        "lock_taken_without_waiters_bit",
        "lock.rs",
        "side | WAITERS\n",
        "side\n",
    ),
    (
        "lock_after_death_as_always",
        "lock.rs",
        "self.wait_and_take(APP, None);\n    }\n\n    /// In a child",
        "self.acquire();\n    }\n\n    /// In a child",
    ),
    (
        "lock_kept_by_child",
        "lock.rs",
        "self.app_waiting.store(0, Ordering::Relaxed);",
        "",
    ),
    (
        "lock_with_the_turn_of_the_dead",
        "lock.rs",
        "bool {\n        self.end_agents_turn();",
        "bool {",
    ),
    (
        "journal_stage_first",
        "space/journal.rs",
        "store(&self.start, run.start);",
        "self.stage.store(stage, Ordering::Release);\n        store(&self.start, run.start);",
    ),
    (
        "tickets_read_late",
        "tickets.rs",
        "pub fn answer(&self, asked: u32) {",
        "pub fn answer(&self, asked: u32) {\n        let asked = asked.max(self.asked.load(Ordering::Acquire));",
    ),
    (
        "told_by_everybody",
        "space/told.rs",
        "if first {",
        "if first || true {",
    ),
];

fn main() {
    println!("cargo:rustc-cfg=loom");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let write = |name: &str, text: &str| {
        // Text that is included may not begin with a module's own comment.
        let lines = text.lines().filter(|line| !line.starts_with("//!"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        std::fs::write(Path::new(&out).join(name).with_extension("rs"), text).expect("written");
    };
    let read = |file: &str| {
        let path = Path::new(SOURCES).join(file);
        println!("cargo:rerun-if-changed={}", path.display());
        std::fs::read_to_string(path).expect("a file of the client")
    };
    for (name, file) in [
        ("lock", "lock.rs"),
        ("journal", "space/journal.rs"),
        ("tickets", "tickets.rs"),
        ("told", "space/told.rs"),
    ] {
        write(name, &read(file));
    }
    for (name, file, from, to) in BROKEN {
        let text = read(file);
        assert!(text.contains(from), "{name}: {file} has changed: {from:?}");
        write(name, &text.replace(from, to));
    }
}
