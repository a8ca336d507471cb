//! `ksmfs exec`: a command that finds ksmfs where the kernel's KSM would be, and whose memory can be merged.
//!
//! The command runs in place of this process, so its exit status, its signals and its process id need no forwarding.
//! Before that, this process moves into a mount namespace of its own ([`crate::namespace`]), puts the files of a daemon
//! at `/sys/kernel/mm/ksm` there ([`place`]), and preloads the library ([`preload`]). The daemon is one that runs
//! ([`contact`]), or one started for the purpose ([`own_daemon`]) that ends with the namespace.

pub(crate) mod contact;
mod own_daemon;
mod place;
mod preload;
mod sys;

use crate::cli::ExecArgs;
use crate::namespace::{self, NamespaceError};
use contact::ContactError;
use ksm_client::{socket_path, trust};
use own_daemon::OwnDaemonError;
use place::PlaceError;
use preload::PreloadError;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Where programs look for KSM.
pub const DIRECTORY: &str = "/sys/kernel/mm/ksm";

/// Exit codes as those of env, nohup and other programs that run a command: this program failed.
const FAILED: u8 = 125;
/// The command was found but could not be run.
const CANNOT_RUN: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

/// Why the command was not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The library.
    #[error("{0}")]
    Preload(#[from] PreloadError),
    /// The daemon that runs.
    #[error("{0}")]
    Contact(#[from] ContactError),
    /// The namespace.
    #[error("{0}")]
    Namespace(#[from] NamespaceError),
    /// The directory.
    #[error("{0}")]
    Place(#[from] PlaceError),
    /// The daemon of its own.
    #[error("{0}")]
    OwnDaemon(#[from] OwnDaemonError),
    /// The command itself.
    #[error("{0}: {1}")]
    Command(PathBuf, io::Error),
}

impl ExecError {
    fn code(&self) -> u8 {
        match self {
            Self::Command(_, error) if error.kind() == io::ErrorKind::NotFound => NOT_FOUND,
            Self::Command(..) => CANNOT_RUN,
            _ => FAILED,
        }
    }
}

/// Runs the command in place of this process, which must have one thread. Returns only if that fails.
#[must_use]
pub fn run(args: &ExecArgs) -> ExitCode {
    let error = match prepare(args) {
        Ok(mut command) => {
            let error = command.exec();
            ExecError::Command(PathBuf::from(command.get_program()), error)
        }
        Err(error) => error,
    };
    eprintln!("ksmfs: {error}");
    ExitCode::from(error.code())
}

/// The command, ready to be run where this process is now.
fn prepare(args: &ExecArgs) -> Result<Command, ExecError> {
    let variable = match args.no_preload {
        true => None,
        false => Some(preload::variable(args.preload.as_deref())?),
    };
    let mut words = args.command.iter();
    let mut command = Command::new(words.next().map_or_else(OsString::new, OsString::clone));
    command.args(words);
    let socket = match running_daemon(args)? {
        Some(daemon) => {
            // In a user namespace the library cannot see any more whose it is.
            if let Some(pid) = daemon.pid() {
                command.env(trust::VARIABLE, pid.to_string());
            }
            show(daemon)?
        }
        None => {
            namespace::enter()?;
            place::make()?;
            own_daemon::start(args)?
        }
    };
    command.env(socket_path::VARIABLE, socket);
    if let Some(list) = variable {
        command.env(preload::VARIABLE, list);
    }
    Ok(command)
}

/// The daemon to use, unless there has to be one of the command's own.
fn running_daemon(args: &ExecArgs) -> Result<Option<contact::Daemon>, ExecError> {
    if args.wants_own_daemon() {
        return Ok(None);
    }
    if let Some(socket) = &args.socket {
        return Ok(Some(contact::daemon_at(socket)?));
    }
    for socket in socket_path::connect_paths(None) {
        match contact::daemon_at(&socket) {
            Ok(daemon) => return Ok(Some(daemon)),
            Err(ContactError::NoDaemon(..)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Shows the files of a daemon that runs; the socket it listens at.
fn show(daemon: contact::Daemon) -> Result<PathBuf, ExecError> {
    // Already there: within another `exec`, or mounted for the whole system.
    if !daemon.is_at(DIRECTORY.as_ref()) {
        let mount = daemon.mount()?;
        namespace::enter()?;
        place::make()?;
        place::bind(&mount)?;
    }
    Ok(daemon.into_socket())
}
