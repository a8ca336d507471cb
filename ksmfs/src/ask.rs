//! Asking a daemon that runs what it does not show as files.

use crate::exec::contact::{ContactError, trusted};
use ksm_engine::wire::{MAX_MESSAGE, MessageBuffer, ProcessFigures, ToAgent, ToDaemon};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::OwnedFd;
use std::path::Path;

struct Conversation<'a> {
    socket: &'a Path,
    connection: OwnedFd,
    buffer: Box<MessageBuffer>,
}

impl<'a> Conversation<'a> {
    fn open(socket: &'a Path, question: &ToDaemon<'_>) -> Result<Self, ContactError> {
        let (connection, _) = trusted(socket)?;
        let buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
        let mut new = Self {
            socket,
            connection,
            buffer,
        };
        let len = question.encode(&mut new.buffer);
        let len = len.map_err(|full| new.mute(&full.to_string()))?;
        let bytes = &new.buffer.0[..len];
        send(&new.connection, bytes, SendFlags::NOSIGNAL)
            .map_err(|errno| new.mute(&errno.to_string()))?;
        Ok(new)
    }

    fn mute(&self, why: &str) -> ContactError {
        ContactError::NoAnswer(self.socket.into(), why.to_owned())
    }

    fn hear(&mut self) -> Result<ToAgent<'_>, ContactError> {
        let received = recv(&self.connection, &mut self.buffer.0[..], RecvFlags::empty());
        match received {
            Ok((_, 0)) => Err(self.mute("it hung up: it is older, or this is not allowed")),
            Ok((_, len)) => {
                let socket = self.socket;
                ToAgent::decode(&self.buffer.0[..len])
                    .map_err(|error| ContactError::NoAnswer(socket.into(), error.to_string()))
            }
            Err(errno) => Err(self.mute(&errno.to_string())),
        }
    }
}

/// Asks the daemon at `socket`, or at the first of the usual places where there is one.
///
/// # Errors
/// When no daemon answers.
pub fn first_of<T>(
    socket: Option<&Path>,
    question: impl Fn(&Path) -> Result<T, ContactError>,
) -> Result<T, ContactError> {
    let places = ksm_client::socket_path::connect_paths(socket);
    let (last, others) = places.split_last().expect("there is one at least");
    for place in others {
        match question(place) {
            Err(ContactError::NoDaemon(..)) => {}
            answer => return answer,
        }
    }
    question(last)
}

/// The figures of all processes that the caller may see.
///
/// # Errors
/// When no daemon answers.
pub fn processes(socket: &Path) -> Result<Vec<ProcessFigures>, ContactError> {
    let mut conversation = Conversation::open(socket, &ToDaemon::Processes)?;
    let mut all = Vec::new();
    loop {
        match conversation.hear()? {
            ToAgent::Processes { list: [] } => return Ok(all),
            ToAgent::Processes { list } => all.extend_from_slice(list),
            other => {
                let why = format!("{other:?}");
                return Err(conversation.mute(&why));
            }
        }
    }
}

/// Has everything scanned once, and waits for the end of it, however long. Returns the number of full scans so far.
///
/// # Errors
/// When no daemon answers, or the caller may not.
pub fn scan(socket: &Path) -> Result<u64, ContactError> {
    let mut conversation = Conversation::open(socket, &ToDaemon::Scan)?;
    sockopt::set_socket_timeout(&conversation.connection, Timeout::Recv, None)
        .map_err(|errno: Errno| conversation.mute(&errno.to_string()))?;
    match conversation.hear()? {
        ToAgent::Scanned { full_scans } => Ok(full_scans),
        other => {
            let why = format!("{other:?}");
            Err(conversation.mute(&why))
        }
    }
}
