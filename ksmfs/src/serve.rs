//! A process that is a daemon: it serves until a signal or its mount's end, and clears up.

use crate::running::{End, Options, Running, StartError};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;

/// Why a daemon did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not be told of signals.
    #[error("signal handler: {0}")]
    Signals(io::Error),
    /// It did not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The engine's thread ended by itself.
    #[error("the engine failed; see the log")]
    EngineGone,
}

/// Serves until SIGTERM or SIGINT, or until the directory is unmounted. `ready` is called once it does, `stopping` when that
/// is over.
///
/// # Errors
/// When it does not start, or the engine failed.
pub fn serve(
    options: &Options,
    ready: impl FnOnce(),
    stopping: impl FnOnce(),
) -> Result<(), ServeError> {
    // Before anything exists that would have to be cleaned up: a signal during the start waits for its end.
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(ServeError::Signals)?;
    raise_descriptor_limit();
    let running = crate::mount(options)?;
    log::info!(
        "mounted at {}, listening at {}",
        running.directory().display(),
        running.socket().display()
    );
    ready();
    let ended_early = wait_for_end(&running, &mut signals);
    stopping();
    running.stop();
    match ended_early {
        Some(End::EngineGone) => Err(ServeError::EngineGone),
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
