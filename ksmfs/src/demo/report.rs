//! What the demo shows: progress while pages merge, and a table at the end.

use crate::footprint::Footprint;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const MIB: f64 = 1048576.0;
/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// A bar on a terminal, plain lines elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
    expected: u64,
    last_line: Cell<Option<Instant>>,
}

impl Progress {
    pub(super) fn new(expected: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(expected), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("merging {bar:40} {pos}/{len} pages sharing")
        {
            bar.set_style(style);
        }
        Self {
            bar,
            expected,
            last_line: Cell::new(None),
        }
    }

    pub(super) fn show(&self, sharing: u64) {
        if std::io::stderr().is_terminal() {
            self.bar.set_length(self.expected.max(sharing));
            self.bar.set_position(sharing);
        } else if self
            .last_line
            .get()
            .is_none_or(|last| last.elapsed() >= LINE_EVERY)
        {
            println!(
                "merging: {sharing} pages sharing, {} expected",
                self.expected
            );
            self.last_line.set(Some(Instant::now()));
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// What came of it.
pub(super) struct Report {
    pub(super) before: Footprint,
    pub(super) after: Footprint,
    pub(super) counters: Vec<(&'static str, String)>,
    pub(super) took: Duration,
    pub(super) cpu_used: Duration,
    /// Bytes that were checked.
    pub(super) checked: u64,
}

impl Report {
    fn counter(&self, name: &str) -> &str {
        self.counters
            .iter()
            .find(|(file, _)| *file == name)
            .map_or("?", |(_, value)| value)
    }

    pub(super) fn print(&self) {
        let (before, after) = (self.before.total(), self.after.total());
        let row = |what: &str, value: String| println!("  {what:<44} {value:>12}");
        println!();
        for counter in [
            "pages_shared",
            "pages_sharing",
            "pages_unshared",
            "pages_volatile",
        ] {
            row(counter, self.counter(counter).to_owned());
        }
        row("memory before, MiB", mib(before));
        row("memory after, MiB", mib(after));
        row("  of it arenas (merged pages), MiB", mib(self.after.arenas));
        row(
            "saved, as the kernel accounts for it, MiB",
            mib(before.saturating_sub(after)),
        );
        let profit = self.counter("general_profit").parse().unwrap_or(0);
        row("general_profit, as the engine sees it, MiB", mib(profit));
        row(
            "time until the last page merged, s",
            format!("{:.2}", self.took.as_secs_f64()),
        );
        row(
            "CPU of daemon and agents, s",
            format!("{:.2}", self.cpu_used.as_secs_f64()),
        );
        row("memory checked byte by byte, MiB", mib(self.checked));
        println!();
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for reading, to a tenth of a MiB"
)]
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / MIB)
}
