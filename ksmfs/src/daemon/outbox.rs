//! Messages on their way to one peer.
//!
//! Sending never blocks. What the socket does not take waits here, and a peer that lets too much wait is cut off:
//! it stopped reading, and an order that it never gets is as good as lost.

use ksm_engine::wire::{MessageBuffer, ToAgent, Version, Versions};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most messages that may wait.
const MOST_WAITING: usize = 64;
/// Most descriptors that one message carries.
const MOST_DESCRIPTORS: usize = 2;

/// Why a peer gets nothing more.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Too many messages wait.
    #[error("it stopped reading: {MOST_WAITING} messages wait")]
    Overflow,
    /// The message does not fit the protocol's longest one.
    #[error("{0}")]
    Encode(#[from] ksm_engine::wire::Full),
    /// The socket refused.
    #[error("sendmsg: {0}")]
    Os(#[from] Errno),
}

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    /// Duplicates, so that an arena released in the meantime still arrives.
    descriptors: SmallVec<[OwnedFd; MOST_DESCRIPTORS]>,
}

impl Packet {
    fn transmit(&self, socket: BorrowedFd<'_>) -> Result<bool, Errno> {
        let descriptors: SmallVec<[_; MOST_DESCRIPTORS]> =
            self.descriptors.iter().map(AsFd::as_fd).collect();
        transmit(socket, &self.bytes, &descriptors)
    }
}

/// The queue of one peer.
#[derive(Debug)]
pub struct Outbox {
    /// Of what is sent.
    version: Version,
    waiting: VecDeque<Packet>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            version: Versions::SPOKEN.oldest,
            waiting: VecDeque::new(),
        }
    }
}

impl Outbox {
    /// From now on the peer is spoken to in this version of the protocol.
    pub fn speak(&mut self, version: Version) {
        self.version = version;
    }

    /// In which it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Sends a message, or queues it behind those that wait.
    ///
    /// # Errors
    /// When the peer is to be cut off.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        message: &ToAgent<'_>,
        descriptors: &[BorrowedFd<'_>],
        buffer: &mut MessageBuffer,
    ) -> Result<(), SendError> {
        let len = message.encode(buffer)?;
        self.version.stamp(buffer);
        let bytes = &buffer.0[..len];
        if self.waiting.is_empty() && transmit(socket, bytes, descriptors)? {
            return Ok(());
        }
        if self.waiting.len() >= MOST_WAITING {
            return Err(SendError::Overflow);
        }
        let copies = descriptors
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
        self.waiting.push_back(Packet {
            bytes: bytes.to_vec(),
            descriptors: copies.collect::<Result<_, _>>()?,
        });
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// When the peer is to be cut off.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), SendError> {
        while let Some(packet) = self.waiting.front() {
            if !packet.transmit(socket)? {
                break;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Sends one packet; `false` if the socket has no room now.
fn transmit(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<bool, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        return match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(errno),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_WAITING, Outbox, SendError};
    use ksm_engine::digest::Salt;
    use ksm_engine::page::DomainId;
    use ksm_engine::wire::{MAX_MESSAGE, MessageBuffer, ToAgent};
    use rustix::net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags,
        SocketType,
    };
    use std::io::{IoSliceMut, Read, Seek, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn welcome() -> ToAgent<'static> {
        ToAgent::Welcome {
            salt: Salt::of_domain(&[1; 32], DomainId(1)),
        }
    }

    fn receive(socket: &OwnedFd) -> (usize, Vec<OwnedFd>) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let got = rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
            .unwrap();
        let fds = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        (got.bytes, fds.collect())
    }

    #[test]
    fn a_message_that_waited_arrives_with_its_descriptor_even_if_that_was_closed() {
        let (ours, theirs) = pair();
        let mut buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
        let mut outbox = Outbox::default();
        let mut sent = 0;
        while outbox.is_empty() {
            outbox
                .send(ours.as_fd(), &welcome(), &[], &mut buffer)
                .unwrap();
            sent += 1;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"passed on").unwrap();
        outbox
            .send(ours.as_fd(), &welcome(), &[file.as_fd()], &mut buffer)
            .unwrap();
        drop(file);
        for _ in 0..sent {
            assert!(receive(&theirs).1.is_empty());
            outbox.flush(ours.as_fd()).unwrap();
        }
        assert!(outbox.is_empty());
        let (_, fds) = receive(&theirs);
        let mut got = std::fs::File::from(fds.into_iter().next().unwrap());
        got.rewind().unwrap();
        let mut text = String::new();
        got.read_to_string(&mut text).unwrap();
        assert_eq!(text, "passed on");
    }

    #[test]
    fn a_peer_that_never_reads_is_given_up() {
        let (ours, _theirs) = pair();
        let mut buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
        let mut outbox = Outbox::default();
        let mut waited = 0;
        let error = loop {
            match outbox.send(ours.as_fd(), &welcome(), &[], &mut buffer) {
                Ok(()) => waited += usize::from(!outbox.is_empty()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SendError::Overflow));
        assert_eq!(waited, MOST_WAITING);
    }
}
