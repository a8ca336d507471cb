//! Ours against the kernel's KSM, in one run, on the same workload: two processes with the same random data.
//!
//! The two take turns, so that a machine that changes its speed changes it for both. Every figure is printed as median
//! and, for ours, as ratio to the kernel's. CPU is the busy time of the whole machine between the start of the
//! scanning and the moment the expected pages are shared: it leaves nothing out.
//!
//! `cargo bench -p testsuite -- [--mib 256] [--rounds 3] [--json FILE]`

use clap::Parser;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testsuite::daemon::{Daemon, write_knob};
use testsuite::kernel::KernelKsm;

const KIT: &str = env!("CARGO_BIN_EXE_kit");
const PAGE_SIZE: u64 = 4096;
/// Part of the expected pages that must be shared.
const CONVERGED: f64 = 0.9999;
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
struct Options {
    /// MiB of random data in each process
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Processes with the same data
    #[arg(long, default_value_t = 2)]
    processes: u64,
    /// Rounds, ours and the kernel's in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Also write the figures here
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Seconds until the expected pages are shared.
    seconds: f64,
    /// Busy seconds of all CPUs meanwhile.
    cpu: f64,
    /// Memory of the processes and of what merges them, after / before.
    memory: f64,
    /// Busy seconds of one more full scan when nothing changes, with smart_scan off.
    rescan: f64,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        theirs.push(kernel_round(&options)?);
        ours.push(our_round(&options)?);
    }
    print(&options, &ours, &theirs);
    if let Some(file) = &options.json {
        let figures = serde_json::json!({
            "mib": options.mib, "processes": options.processes,
            "ours": rows(&ours), "kernel": rows(&theirs),
        });
        std::fs::write(file, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

fn kernel_round(options: &Options) -> std::io::Result<Figures> {
    let ksm = KernelKsm::take()?;
    let figures = measure(options, ksm.path(), "kernel", None);
    ksm.write("run", "2")?;
    Ok(figures)
}

fn our_round(options: &Options) -> std::io::Result<Figures> {
    let daemon = Daemon::start(KIT);
    let socket = daemon.socket();
    let socket = socket.to_str().ok_or(std::io::ErrorKind::InvalidFilename)?;
    Ok(measure(
        options,
        &daemon.mount(),
        socket,
        Some(daemon.pid()),
    ))
}

fn measure(options: &Options, ksm: &Path, socket: &str, daemon: Option<u32>) -> Figures {
    let workers: Vec<Worker> = (0..options.processes)
        .map(|_| Worker::start(socket, options.mib))
        .collect();
    let pids: Vec<u32> = workers.iter().map(|worker| worker.child.id()).collect();
    let footprint = || {
        ksmfs::footprint::of(&pids, daemon)
            .expect("own processes")
            .total()
    };
    let before = footprint();
    let knob = |file, value| write_knob(ksm, file, value).expect("a knob");
    let counter = |file: &str| {
        let text = std::fs::read_to_string(ksm.join(file)).expect("a counter");
        text.trim().parse::<u64>().expect("a number")
    };
    knob("max_page_sharing", "256");
    knob("smart_scan", "0");
    knob("pages_to_scan", "100000");
    knob("sleep_millisecs", "0");
    let pages = (options.mib << 20) / PAGE_SIZE;
    #[expect(clippy::cast_precision_loss, reason = "page counts are small")]
    let expected = ((options.processes - 1) * pages) as f64 * CONVERGED;
    let (start, busy_before) = (Instant::now(), busy());
    knob("run", "1");
    #[expect(clippy::cast_precision_loss, reason = "page counts are small")]
    while (counter("pages_sharing") as f64) < expected {
        assert!(start.elapsed() < PATIENCE, "not converged in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = busy() - busy_before;
    // One scan to settle, then scans that find nothing new.
    let wait_scan = |count| {
        let from = counter("full_scans");
        while counter("full_scans") < from + count {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_scan(2);
    let (scans, rescan_before) = (counter("full_scans"), busy());
    wait_scan(3);
    #[expect(clippy::cast_precision_loss, reason = "a few scans")]
    let rescan = (busy() - rescan_before) / (counter("full_scans") - scans) as f64;
    knob("run", "0");
    let after = kernel_saving(daemon, counter("pages_sharing"))
        .map_or_else(footprint, |saved| before - saved);
    drop(workers);
    Figures {
        seconds,
        cpu,
        memory: ratio(after, before),
        rescan,
    }
}

/// A merged page of the kernel's is in no proportional set size but of its sharers; what it saves is exact.
fn kernel_saving(daemon: Option<u32>, sharing: u64) -> Option<u64> {
    daemon.is_none().then_some(sharing * PAGE_SIZE)
}

struct Worker {
    child: Child,
}

impl Worker {
    fn start(socket: &str, mib: u64) -> Self {
        let mut child = Command::new(KIT)
            .args(["clone", socket, &mib.to_string(), "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the kit runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped above"))
            .read_line(&mut line)
            .expect("own child");
        assert_eq!(line.trim(), "ok", "worker");
        Self { child }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Busy seconds of all CPUs since boot.
fn busy() -> f64 {
    use procfs::CurrentSI;
    let total = procfs::KernelStats::current().expect("/proc/stat").total;
    let ticks = total.user
        + total.nice
        + total.system
        + total.irq.unwrap_or(0)
        + total.softirq.unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "seconds since boot")]
    let seconds = ticks as f64 / procfs::ticks_per_second() as f64;
    seconds
}

#[expect(clippy::cast_precision_loss, reason = "for reading")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

const NAMES: [&str; 4] = [
    "time to converge, s",
    "CPU to converge, s",
    "memory after / before",
    "CPU of a further scan, s",
];

fn row(f: &Figures) -> [f64; 4] {
    [f.seconds, f.cpu, f.memory, f.rescan]
}

fn rows(figures: &[Figures]) -> serde_json::Value {
    NAMES
        .iter()
        .enumerate()
        .map(|(i, name)| {
            (
                (*name).to_owned(),
                figures.iter().map(|f| row(f)[i]).collect::<Vec<_>>().into(),
            )
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn print(options: &Options, ours: &[Figures], theirs: &[Figures]) {
    println!(
        "{} processes x {} MiB of the same random data, {} rounds, medians",
        options.processes, options.mib, options.rounds
    );
    println!("| | ours | kernel | ours / kernel |\n|---|---|---|---|");
    for (i, name) in NAMES.iter().enumerate() {
        let median = |figures: &[Figures]| {
            let mut all: Vec<f64> = figures.iter().map(|f| row(f)[i]).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let (a, b) = (median(ours), median(theirs));
        println!("| {name} | {a:.3} | {b:.3} | {:.2} |", a / b);
    }
}
