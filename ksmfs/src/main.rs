//! The program: command line, log, signals, exit codes.
#![deny(unsafe_code)]

use clap::Parser;
use ksmfs::cli::{Cli, Command, MountArgs, PolicyCommand, ScanArgs, SettleArgs, StatusArgs};
use ksmfs::policy::Policy;
use ksmfs::processes::Processes;
use ksmfs::status::Status;
use ksmfs::{ask, demo, exec};
use rustix::process::Signal;
use sd_notify::NotifyState;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // fuser warns about an unmount that is done in another way a moment later.
    let level = match &cli.command {
        // Its output is the command's.
        Command::Exec(_) => "warn,fuser=error",
        _ => "info,fuser=error",
    };
    let filter = env_logger::Env::default().default_filter_or(level);
    env_logger::Builder::from_env(filter)
        .format_timestamp_millis()
        .init();
    let done = match &cli.command {
        Command::Mount(args) => serve(args),
        Command::Policy(PolicyCommand::Check { file }) => check_policy(file),
        Command::Status(args) => status(args),
        Command::Scan(args) => scan(args),
        Command::Settle(args) => settle(args),
        Command::Exec(args) => return exec::run(args),
        Command::Demo(options) => demo::run(*options).map_err(Into::into),
        Command::DemoWorker(args) => {
            demo::serve_worker(&args.socket, args.seed, &args.list).map_err(Into::into)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ksmfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &MountArgs) -> Result<(), Box<dyn Error>> {
    if args.end_with_parent {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    let socket = ksm_client::socket_path::listen_path(args.socket.as_deref())?;
    // Outside of systemd there is nobody to notify.
    let tell = |state| {
        let _ = sd_notify::notify(&[state]);
    };
    let options = args.options(socket)?;
    ksmfs::serve(
        &options,
        || tell(NotifyState::Ready),
        || tell(NotifyState::Stopping),
    )?;
    Ok(())
}

fn check_policy(file: &Path) -> Result<(), Box<dyn Error>> {
    Policy::load(file)?;
    println!("{}: a daemon would start with it", file.display());
    Ok(())
}

fn status(args: &StatusArgs) -> Result<(), Box<dyn Error>> {
    let status = Status::read(args.directory.as_deref())?;
    let processes = args.processes.then(|| {
        let all = ask::first_of(args.socket.as_deref(), ask::processes)?;
        Ok::<_, Box<dyn Error>>(Processes(all))
    });
    let processes = processes.transpose()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut value = status.to_json();
        if let Some(processes) = processes {
            value["processes"] = processes.to_json();
            value["would_save_bytes"] = (processes.would_merge() * 4096).into();
        }
        writeln!(out, "{value:#}")?;
    } else {
        writeln!(out, "{status}")?;
        if let Some(processes) = processes {
            writeln!(out, "\n{processes}")?;
        }
    }
    Ok(())
}

fn scan(args: &ScanArgs) -> Result<(), Box<dyn Error>> {
    for _ in 0..args.times {
        ask::first_of(args.socket.as_deref(), ask::scan)?;
    }
    Ok(())
}

fn settle(args: &SettleArgs) -> Result<(), Box<dyn Error>> {
    let patience = args.timeout.map(Duration::from_secs);
    let status = ksmfs::settle::settle(args.directory.as_deref(), args.scans, patience)?;
    writeln!(std::io::stdout(), "{status}")?;
    Ok(())
}
