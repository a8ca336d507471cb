//! Whether a process can find out by timing which of its pages another process has, too.
//!
//! A spy has pages of which half, drawn at random, are equal to those of a victim. It times a read of each (the line was
//! flushed, and the victim has read its own copy since), and a write. Whether the times of the pages that the victim has
//! differ from those of the others is judged by the Mann-Whitney test: U as the probability that a time of the first kind is
//! the longer one (0.5: no difference), and the two-sided p of that by the normal approximation with ties corrected.

use super::cases::Apps;
use super::measure::converge;
use super::report::Report;
use super::sides::{Side, pause, until};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::time::Duration;
use testsuite::kernel::KernelKsm;
use testsuite::workload::{Expected, Part, Workload, expected};

pub const NAME: &str = "side-channels";
/// Users who are nobody else's.
const USERS: [u32; 2] = [60_001, 60_002];
const PAGES: usize = 4096;
const SCANS: u64 = 5;
const OFTEN: Duration = Duration::from_millis(5);

/// What one comparison gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub setting: String,
    pub access: String,
    /// Median nanoseconds of pages that the victim has, too, and of others.
    pub equal_ns: f64,
    pub other_ns: f64,
    /// Probability that a time of the first is longer than one of the second.
    pub longer: f64,
    pub p: f64,
}

/// Measures ours within and across users, and the kernel's across users.
pub fn measure(
    kit: &str,
    kernel: Option<&KernelKsm>,
    rounds: usize,
    report: &mut Report,
) -> io::Result<()> {
    report.side_channels.clear();
    let settings = [
        ("ours, one user", None, [USERS[0]; 2]),
        ("ours, two users", None, USERS),
        ("kernel, two users", kernel, USERS),
    ];
    for round in 1..=rounds {
        for (setting, kernel, users) in settings {
            if setting.starts_with("kernel") && kernel.is_none() {
                continue;
            }
            eprintln!("{NAME}, round {round} of {rounds}: {setting}");
            let merges = kernel.is_some() || users[0] == users[1];
            for (access, times) in spy(kit, kernel, users, merges)? {
                report.side_channels.push(judge(setting, access, &times));
            }
        }
    }
    Ok(())
}

type Times = [(&'static str, Vec<f64>); 2];

/// Times of reads and writes; negative ones are of pages that the victim does not have.
fn spy(kit: &str, kernel: Option<&KernelKsm>, users: [u32; 2], merges: bool) -> io::Result<Times> {
    let parts = [0, 1].map(|process| Part {
        workload: Workload::Scattered,
        process,
        pages: PAGES,
    });
    let side = Side::start(kernel, kit)?;
    let mut apps = Apps::start_as(kit, Some(&side), &parts, &users)?;
    if merges {
        converge(&side, expected(&parts, u64::MAX, false)?)?;
    } else {
        // As long as it would have taken.
        side.set("run", "1")?;
        let enough = side.count("full_scans")? + SCANS;
        until("scans", OFTEN, |_| Ok(side.count("full_scans")? >= enough))?;
        let none = Expected {
            sharing: side.count("pages_sharing")?,
            zero: 0,
        };
        if none.sharing != 0 {
            return Err(io::Error::other("pages of two users were merged"));
        }
    }
    side.set("run", "0")?;
    pause(OFTEN)?;
    let [spy, victim] = &mut apps.0[..] else {
        return Err(io::Error::other("two apps were started"));
    };
    spy.ask("flush");
    victim.ask("touch");
    let mut times = |kind| -> io::Result<Vec<f64>> {
        let answer = spy.ask(&format!("times {kind}"));
        let numbers = answer.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().map_err(io::Error::other)
    };
    let times = [("read", times("read")?), ("write", times("write")?)];
    side.set("run", "2")?;
    side.set("run", "0")?;
    Ok(times)
}

fn judge(setting: &str, access: &str, times: &[f64]) -> Finding {
    let equal: Vec<f64> = times
        .iter()
        .copied()
        .filter(|t| t.is_sign_positive())
        .collect();
    let other: Vec<f64> = times
        .iter()
        .filter(|t| t.is_sign_negative())
        .map(|t| -t)
        .collect();
    let (longer, p) = mann_whitney(&equal, &other);
    let median = |values: &[f64]| super::figures::median(values.to_vec()).unwrap_or(f64::NAN);
    Finding {
        setting: setting.to_owned(),
        access: access.to_owned(),
        equal_ns: median(&equal),
        other_ns: median(&other),
        longer,
        p,
    }
}

/// The probability that one of `a` is greater than one of `b`, and the two-sided p of its not being a half.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> (f64, f64) {
    let mut all: Vec<(f64, bool)> = a.iter().map(|x| (*x, true)).collect();
    all.extend(b.iter().map(|x| (*x, false)));
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (n, m) = (float(a.len()), float(b.len()));
    let (mut ranks, mut ties, mut below) = (0.0, 0.0, 0.0);
    for same in all.chunk_by(|x, y| x.0.total_cmp(&y.0).is_eq()) {
        let t = float(same.len());
        ranks += (below + (t + 1.0) / 2.0) * float(same.iter().filter(|x| x.1).count());
        ties += t * t * t - t;
        below += t;
    }
    let u = ranks - n * (n + 1.0) / 2.0;
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    let longer = u / (n * m);
    if variance <= 0.0 {
        return (longer, 1.0);
    }
    let z = (u - n * m / 2.0).abs() / variance.sqrt();
    (longer, erfc(z / std::f64::consts::SQRT_2))
}

/// The complementary error function for `x >= 0` (Abramowitz and Stegun 7.1.26), to 1.5e-7.
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let terms = [
        0.254_829_592,
        -0.284_496_736,
        1.421_413_741,
        -1.453_152_027,
        1.061_405_429,
    ];
    let sum = terms.iter().rev().fold(0.0, |sum, term| (sum + term) * t);
    sum * (-x * x).exp()
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn float(count: usize) -> f64 {
    count as f64
}

/// The table.
pub fn write(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    if report.side_channels.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "**Side channels**: {PAGES} pages each, half of them equal; each row is one round\n\n\
         | | access | equal, ns | not equal, ns | longer | p |\n|---|---|---|---|---|---|"
    )?;
    let mut rows: Vec<_> = report.side_channels.iter().collect();
    rows.sort_by_key(|row| (&row.setting, &row.access));
    for row in rows {
        let p = if row.p < 1e-6 {
            "< 1e-6".to_owned()
        } else {
            format!("{:.3}", row.p)
        };
        writeln!(
            f,
            "| {} | {} | {:.0} | {:.0} | {:.3} | {p} |",
            row.setting, row.access, row.equal_ns, row.other_ns, row.longer
        )?;
    }
    writeln!(f)
}
