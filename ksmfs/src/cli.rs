//! The command line.

use crate::demo;
use crate::policy::{Policy, PolicyError};
use crate::quotas::Quotas;
use crate::running::Options;
use clap::{Args, Parser, Subcommand};
use ksm_engine::engine::Extras;
use ksm_engine::knobs::KsmFile;
use std::ffi::OsString;
use std::path::PathBuf;

/// Kernel Samepage Merging in user space, behind the files of /sys/kernel/mm/ksm.
#[derive(Debug, Parser)]
#[command(name = "ksmfs", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the directory and serve it, in the foreground, until SIGTERM or SIGINT
    Mount(MountArgs),
    /// Run a command that finds ksmfs at /sys/kernel/mm/ksm, and whose memory can be merged
    Exec(ExecArgs),
    /// Look at a file that says which processes may have pages in common
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show what was merged and saved
    Status(StatusArgs),
    /// Have a running daemon scan everything once, now, and wait for the end of it
    Scan(ScanArgs),
    /// Wait until the counters have stopped changing
    Settle(SettleArgs),
    /// Merge this machine's own files in some processes, measure what it saves, check every byte
    Demo(demo::Options),
    /// A worker of the demo
    #[command(hide = true)]
    DemoWorker(DemoWorkerArgs),
}

/// What to do with a policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say whether a daemon would start with it, and what is wrong in which line if not
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Arguments of a worker of the demo.
#[derive(Debug, Args)]
pub struct DemoWorkerArgs {
    /// The daemon
    pub socket: PathBuf,
    /// What makes its own data its own
    pub seed: u64,
    /// The files to load
    pub list: PathBuf,
}

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// An existing directory to mount at
    pub directory: PathBuf,
    /// Where processes join [default: $KSMFS_SOCKET, /run/ksmfs.sock for root, else $XDG_RUNTIME_DIR/ksmfs.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The daemon's own options
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub end_with_parent: bool,
}

/// What a new daemon is started with.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// What to write to `run` at the start: 1 scans and merges at once
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub run: Option<u8>,
    /// A value to set at the start, for instance pages_to_scan=1000; may be repeated
    #[arg(long = "set", value_name = "FILE=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(KsmFile, String)>,
    /// Most processes of one user that may join
    #[arg(long, value_name = "N", default_value_t = Quotas::PEERS)]
    pub max_peers: usize,
    /// Most separate regions of one user's processes
    #[arg(long, value_name = "N", default_value_t = Quotas::REGIONS)]
    pub max_regions: usize,
    /// Most pages of one user that are kept a record of [default: four times those of this machine]
    #[arg(long, value_name = "N")]
    pub max_pages: Option<u64>,
    /// Most MiB of merged pages of one user's processes [default: half of this machine's memory]
    #[arg(long, value_name = "MIB")]
    pub max_merged: Option<u64>,
    /// Keep all rights, for debugging
    #[arg(long)]
    pub no_sandbox: bool,
    /// Move pages of merged copies with few sharers to fuller ones, at most so many per cent of the pages scanned
    #[arg(long, value_name = "SHARE", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub refile: u8,
    /// Merge nothing, and count what would be: see `status --processes`. Looks at all pages in each scan (smart_scan 0)
    #[arg(long)]
    pub dry_run: bool,
    /// A file that says which processes may have pages in common [default: those of one user]
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Let equal pages meet that smart_scan looks at in different scans; the kernel never merges some of them
    #[arg(long)]
    pub meet_phases: bool,
    /// Treat parts of huge pages just as the kernel's KSM does, which loses sight of some of them for a scan
    #[arg(long)]
    pub huge_pages_as_ksmd: bool,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Use the daemon that listens here [default: as for `mount`, and one of the command's own if none runs]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["own", "run", "settings", "max_peers", "refile", "meet_phases", "huge_pages_as_ksmd", "dry_run", "policy", "max_regions", "max_pages", "max_merged", "no_sandbox"])]
    pub socket: Option<PathBuf>,
    /// Start a daemon for this command and its children, even if another one runs; so do the options below
    #[arg(long)]
    pub own: bool,
    /// What that daemon is started with
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// The library to preload [default: $KSMFS_PRELOAD, libksm_preload.so near this program]
    #[arg(long, value_name = "PATH")]
    pub preload: Option<PathBuf>,
    /// Only show the files: the command's memory is not merged
    #[arg(long, conflicts_with = "preload")]
    pub no_preload: bool,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
}

impl ExecArgs {
    /// Whether the daemon has to be a new one.
    #[must_use]
    pub fn wants_own_daemon(&self) -> bool {
        let daemon = &self.daemon;
        let preset = daemon.run.is_some() || !daemon.settings.is_empty();
        let ours = daemon.meet_phases || daemon.huge_pages_as_ksmd || daemon.dry_run;
        let extras = daemon.refile > 0 || ours || daemon.policy.is_some();
        self.own || preset || extras || daemon.quotas() != Quotas::default() || daemon.no_sandbox
    }
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The directory [default: a mounted ksmfs, else /sys/kernel/mm/ksm]
    pub directory: Option<PathBuf>,
    /// Print all values as JSON
    #[arg(long)]
    pub json: bool,
    /// Show each process, and why its pages did not merge; asks the daemon, which tells users only of their own
    #[arg(long)]
    pub processes: bool,
    /// The daemon to ask [default: as for `mount`]
    #[arg(long, value_name = "PATH", requires = "processes")]
    pub socket: Option<PathBuf>,
}

/// Arguments of `scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// The daemon [default: as for `mount`]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How many scans: a page merges when two have seen it with the same bytes
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub times: u32,
}

/// Arguments of `settle`.
#[derive(Debug, Args)]
pub struct SettleArgs {
    /// The directory [default: a mounted ksmfs, else /sys/kernel/mm/ksm]
    pub directory: Option<PathBuf>,
    /// Full scans in a row that change nothing
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub scans: u64,
    /// Give up after so long, with status 1
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

impl MountArgs {
    /// The daemon that is asked for, listening at `socket`.
    ///
    /// # Errors
    /// When there is no such policy.
    pub fn options(&self, socket: PathBuf) -> Result<Options, PolicyError> {
        self.daemon.options(self.directory.clone(), socket)
    }
}

impl DaemonArgs {
    fn quotas(&self) -> Quotas {
        let default = Quotas::default();
        let merged = self.max_merged.map(|mib| mib.saturating_mul(1 << 20));
        Quotas {
            peers: self.max_peers,
            regions: self.max_regions,
            pages: self.max_pages.unwrap_or(default.pages),
            merged: merged.unwrap_or(default.merged),
        }
    }

    /// A daemon with these values.
    ///
    /// # Errors
    /// When there is no such policy.
    pub fn options(&self, directory: PathBuf, socket: PathBuf) -> Result<Options, PolicyError> {
        let policy = self.policy.as_deref().map(Policy::load).transpose()?;
        let run = self.run.map(|run| (KsmFile::Run, run.to_string()));
        let look_at_all = self.dry_run.then(|| (KsmFile::SmartScan, "0".to_owned()));
        Ok(Options {
            // Scanning starts with the other values in force.
            knobs: look_at_all
                .into_iter()
                .chain(self.settings.iter().cloned())
                .chain(run)
                .collect(),
            quotas: self.quotas(),
            sandbox: !self.no_sandbox,
            extras: Extras {
                refile_percent: self.refile,
                meet_phases: self.meet_phases,
                huge_pages_as_ksmd: self.huge_pages_as_ksmd,
                dry_run: self.dry_run,
            },
            policy: policy.unwrap_or_default(),
            ..Options::new(directory, socket)
        })
    }
}

fn parse_setting(text: &str) -> Result<(KsmFile, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as FILE=VALUE")?;
    let file = KsmFile::from_name(name).filter(|file| file.is_writable());
    let file = file.ok_or_else(|| format!("there is no file {name} to set"))?;
    Ok((file, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command, parse_setting};
    use clap::{CommandFactory, Parser};
    use ksm_engine::engine::Extras;
    use ksm_engine::knobs::KsmFile;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_set_last() {
        let line = [
            "ksmfs",
            "mount",
            "/m",
            "--run",
            "1",
            "--set",
            "pages_to_scan=7",
        ];
        let Command::Mount(args) = Cli::parse_from(line).command else {
            panic!("not a mount");
        };
        let knobs = args.options("/s".into()).unwrap().knobs;
        let wanted = [(KsmFile::PagesToScan, "7"), (KsmFile::Run, "1")];
        assert_eq!(knobs, wanted.map(|(file, value)| (file, value.to_owned())));
    }

    #[test]
    fn what_the_kernel_does_not_do_is_off_unless_asked_for() {
        let extras = |line: &[&str]| {
            let line = ["ksmfs", "mount", "/m"].iter().chain(line);
            let Command::Mount(args) = Cli::parse_from(line).command else {
                panic!("not a mount");
            };
            args.options("/s".into()).unwrap().extras
        };
        assert_eq!(extras(&[]), Extras::default());
        let all = Extras {
            refile_percent: 5,
            meet_phases: true,
            huge_pages_as_ksmd: true,
            dry_run: true,
        };
        let line = [
            "--refile",
            "5",
            "--meet-phases",
            "--huge-pages-as-ksmd",
            "--dry-run",
        ];
        assert_eq!(extras(&line), all);
        assert!(Cli::try_parse_from(["ksmfs", "mount", "/m", "--refile", "101"]).is_err());
    }

    #[test]
    fn only_writable_files_can_be_set() {
        assert!(parse_setting("pages_shared=1").is_err());
        assert!(parse_setting("max_kernel_pages=1").is_err());
        assert!(parse_setting("run").is_err());
        assert!(Cli::try_parse_from(["ksmfs", "mount", "/m", "--run", "2"]).is_err());
    }
}
