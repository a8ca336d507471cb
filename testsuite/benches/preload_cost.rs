//! What the preloaded library costs a program: at its start, for what it does to its memory, for a fork.
//!
//! `cargo bench -p testsuite --bench preload_cost`. Those that are compared take turns, three times, so that what else the
//! machine does meets all of them. Microseconds: the shortest and the median of each round.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testsuite::daemon::Daemon;
use testsuite::programs::{preload_library, said};

const ROUNDS: usize = 3;
const STARTS: usize = 1000;
/// What `cost.c` measures.
const ACTIONS: [(&str, &str); 4] = [
    ("map", "mmap, touch, munmap of 64 KiB"),
    ("malloc", "malloc, free of 256 KiB"),
    ("heap", "16 times malloc, free of 64 bytes to 512 KiB"),
    ("fork", "fork, _exit, waitpid"),
];

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let compile = |name: &str, source: &Path, flags: &[&str]| {
        let made = directory.path().join(name);
        said(
            Command::new("cc")
                .args(flags)
                .arg("-o")
                .arg(&made)
                .arg(source),
        );
        made
    };
    let source = directory.path().join("empty.c");
    std::fs::write(&source, "void nothing(void) {}\n").expect("own directory");
    let empty = compile("empty.so", &source, &["-shared", "-fPIC", "-nostdlib"]);
    // As it is installed: the page cache has a file that a linker wrote in smaller pieces.
    let ours = directory.path().join("libksm_preload.so");
    std::fs::copy(preload_library(), &ours).expect("own directory");

    println!("start and end of /bin/true");
    for _ in 0..ROUNDS {
        starts([None, Some(&empty), Some(&ours)]);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/cost.c");
    let cost = compile("cost", &source, &["-O1"]);
    println!("\nnothing merged: without the library, with it");
    for _ in 0..ROUNDS {
        actions(&[
            said(&mut plain(&cost)),
            said(&mut with(&cost, &ours, Path::new("/nonexistent/socket"))),
        ]);
    }
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_kit"));
    println!("\n16 pages registered, a daemon there: without the library, with it");
    for _ in 0..ROUNDS {
        actions(&[
            said(&mut plain(&cost)),
            said(with(&cost, &ours, &daemon.socket()).arg("16")),
        ]);
    }
}

fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command
}

fn with(program: &Path, library: &Path, socket: &Path) -> Command {
    let mut command = plain(program);
    command
        .env("LD_PRELOAD", library)
        .env("KSMFS_SOCKET", socket);
    command
}

/// One round of starts with each of these libraries.
fn starts(libraries: [Option<&Path>; 3]) {
    let mut took = [const { Vec::new() }; 3];
    for _ in 0..STARTS {
        for (library, took) in libraries.into_iter().zip(&mut took) {
            let mut command = plain(Path::new("/bin/true"));
            command.stdin(Stdio::null());
            if let Some(library) = library {
                command.env("LD_PRELOAD", library);
            }
            let start = Instant::now();
            assert!(command.status().expect("it runs").success());
            took.push(start.elapsed());
        }
    }
    let names = ["without", "an empty library", "ours"];
    for (name, took) in names.iter().zip(&mut took) {
        took.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let (least, median) = (micros(took[0]), micros(took[STARTS / 2]));
        print!("  {name} {least:.0} {median:.0}");
    }
    println!();
}

/// Shows what two runs of `cost.c` have said.
fn actions(said: &[String; 2]) {
    for (name, what) in ACTIONS {
        let numbers = said.each_ref().map(|said| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            let numbers = line.expect("it says all").split_whitespace();
            let micros = numbers.map(|nanos| nanos.parse::<f64>().expect("a number") / 1000.0);
            micros.map(|time| format!("{time:.2}")).collect::<Vec<_>>()
        });
        println!(
            "  {what}: {}; {}",
            numbers[0].join(" "),
            numbers[1].join(" ")
        );
    }
}
