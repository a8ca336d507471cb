//! The program: command line, log, signals, exit codes.
#![deny(unsafe_code)]

use clap::Parser;
use ksmfs::cli::{Cli, Command, MountArgs, StatusArgs};
use ksmfs::demo;
use ksmfs::running::{End, Running};
use ksmfs::status::Status;
use rustix::process::{Resource, Rlimit, Signal};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // fuser warns about an unmount that is done in another way a moment later.
    let filter = env_logger::Env::default().default_filter_or("info,fuser=error");
    env_logger::Builder::from_env(filter)
        .format_timestamp_millis()
        .init();
    let done = match &cli.command {
        Command::Mount(args) => serve(args),
        Command::Status(args) => status(args),
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
    // Before anything exists that would have to be cleaned up: a signal during the start waits for its end.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    raise_descriptor_limit();
    let socket = ksm_client::socket_path::listen_path(args.socket.as_deref())?;
    let running = ksmfs::mount(&args.options(socket))?;
    log::info!(
        "mounted at {}, listening at {}",
        running.directory().display(),
        running.socket().display()
    );
    // Outside of systemd there is nobody to notify.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let ended_early = wait_for_end(&running, &mut signals);
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    running.stop();
    match ended_early {
        Some(End::EngineGone) => Err("the engine failed; see the log".into()),
        Some(End::Unmounted) | None => Ok(()),
    }
}

/// Waits for a signal, or for the daemon to end by itself.
fn wait_for_end(running: &Running, signals: &mut Signals) -> Option<End> {
    let (tell, end) = crossbeam_channel::bounded(1);
    let ended = running.ended();
    let handle = signals.handle();
    std::thread::spawn(move || {
        if let Ok(end) = ended.recv() {
            let _ = tell.send(end);
            handle.close();
        }
    });
    if let Some(signal) = signals.forever().next() {
        log::info!("signal {signal}: stopping");
        return None;
    }
    let end = end.recv().ok();
    log::info!("stopping: {end:?}");
    end
}

/// A connection costs two descriptors, an arena one or two.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(errno) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::warn!("RLIMIT_NOFILE stays as it is: {errno}");
    }
}

fn status(args: &StatusArgs) -> Result<(), Box<dyn Error>> {
    let status = Status::read(args.directory.as_deref())?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", status.to_json())?;
    } else {
        writeln!(out, "{status}")?;
    }
    Ok(())
}
