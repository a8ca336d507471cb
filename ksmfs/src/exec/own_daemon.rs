//! A daemon for one command and its descendants.
//!
//! It mounts in the command's namespace and then leaves it, so that the namespace alone holds the mount: when the last
//! process in there has gone, whoever started it, the kernel unmounts and thereby ends the daemon. It is no child of
//! the command, which could be surprised by one, and belongs to no terminal.

use super::sys::{self, Fork};
use super::{DIRECTORY, ExecArgs};
use crate::policy::PolicyError;
use crate::running::Options;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{WaitOptions, getpid, waitpid};
use std::env;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::exit;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum OwnDaemonError {
    /// It said why on the standard error output.
    #[error("the daemon for the command did not start")]
    NotStarted,
    /// There is no such policy.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// A call failed.
    #[error("starting a daemon: {0}: {1}")]
    Os(&'static str, Errno),
}

/// Starts one whose files are in the directory; the socket it listens at. This process must have one thread.
pub(super) fn start(args: &ExecArgs) -> Result<PathBuf, OwnDaemonError> {
    let os = |call| move |errno| OwnDaemonError::Os(call, errno);
    let socket = socket();
    let options = args.daemon.options(DIRECTORY.into(), socket.clone())?;
    let options = Options {
        hand_over: true,
        ..options
    };
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(os("pipe"))?;
    match sys::fork().map_err(os("fork"))? {
        Fork::Child => detach(&options, &tell),
        Fork::Parent(child) => {
            drop(tell);
            // The child between: its own child belongs to nobody here.
            waitpid(Some(child), WaitOptions::empty()).map_err(os("waitpid"))?;
            match rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut [0_u8; 1])) {
                Ok(1) => Ok(socket),
                _ => Err(OwnDaemonError::NotStarted),
            }
        }
    }
}

/// Where it listens: below the user's run-time directory if there is one. The command will have this process's id.
fn socket() -> PathBuf {
    let runtime = match rustix::process::geteuid().is_root() {
        true => Some(PathBuf::from("/run")),
        false => env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    };
    let writable = |dir: &PathBuf| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok();
    let directory = runtime.filter(writable).unwrap_or_else(env::temp_dir);
    directory.join(format!("ksmfs-exec-{}.sock", getpid()))
}

/// In the child between: leaves the daemon to init.
fn detach(options: &Options, tell: &OwnedFd) -> ! {
    // A new session has no terminal that could interrupt it.
    let forked = rustix::process::setsid().and_then(|_| sys::fork());
    match forked {
        Ok(Fork::Child) => exit(daemon(options, tell)),
        Ok(Fork::Parent(_)) => sys::leave(0),
        Err(errno) => {
            eprintln!("ksmfs: starting a daemon: {errno}");
            sys::leave(1)
        }
    }
}

/// The daemon itself; its exit code.
fn daemon(options: &Options, tell: &OwnedFd) -> i32 {
    match serve(options, tell) {
        Ok(()) => 0,
        Err(error) => {
            // Before `tell` is closed, which is when the command's process goes on and ends.
            eprintln!("ksmfs: {error}");
            1
        }
    }
}

fn serve(options: &Options, tell: &OwnedFd) -> Result<(), Box<dyn Error>> {
    settle(tell)?;
    let ready = || {
        let _ = rustix::io::write(tell, b"!");
    };
    crate::serve(options, ready, || ())?;
    Ok(())
}

/// Lets go of all that belongs to the command: its directory, its input and output, whatever else is open. Only the
/// standard error output stays, for the log.
fn settle(tell: &OwnedFd) -> Result<(), Errno> {
    rustix::process::chdir(Path::new("/"))?;
    sys::close_all_but(tell)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)
}
