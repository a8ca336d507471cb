//! A connection to the daemon, as steward and agent hold it.
//!
//! Nothing here uses the heap or a lock of the app: the agent reconnects while the app may be frozen inside `malloc`.
//! Every call is bounded in time, so that a daemon that hangs costs the app nothing.

use crate::link_state::LinkState;
use crate::sys::peer::peer_of;
use crate::trust;
use ksm_engine::digest::Salt;
use ksm_engine::wire::{
    HANDED_IN, Hello, MessageBuffer, RefusalReason, ToAgent, ToDaemon, Version, Versions,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with, sockopt,
};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How long the daemon may take to answer, or to make room for a message.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// The most descriptors a message carries.
const MOST_DESCRIPTORS: usize = 2;
/// Longer than the longest message, with the kernel's own overhead.
const SEND_BUFFER: usize = 192 * 1024;

/// Descriptors that came with a message.
pub type Descriptors = [Option<OwnedFd>; MOST_DESCRIPTORS];

/// A message, and what came with it.
type Received<'b> = (ToAgent<'b>, Descriptors);

/// A connected socket whose other end belongs to root or to this user.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// What both ends speak; until that is agreed on, what is asked without a greeting.
    version: Version,
}

/// What the daemon answers a greeting with.
#[derive(Debug)]
pub struct Welcome {
    /// Salt of this user's domain.
    pub salt: Salt,
    /// The donation buffer.
    pub donation: OwnedFd,
    /// `/dev/userfaultfd`, if the daemon may open it.
    pub device: Option<OwnedFd>,
}

impl Link {
    /// Connects.
    pub fn connect(address: &SocketAddrUnix) -> Result<Self, LinkState> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(LinkState::Failed)?;
        // A smaller buffer of the host's choice takes most messages as well.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
        connect(&socket, address).map_err(LinkState::NoDaemon)?;
        let peer = peer_of(socket.as_fd()).map_err(LinkState::Failed)?;
        if trust::is_trusted(peer) {
            let version = Versions::SPOKEN.oldest;
            Ok(Self { socket, version })
        } else {
            Err(LinkState::Untrusted { uid: peer.uid })
        }
    }

    /// The connection whose socket was handed over.
    pub fn from_socket(socket: OwnedFd, version: Version) -> Self {
        Self { socket, version }
    }

    /// The version of the protocol that is spoken.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The socket.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Greets, and waits for the answer.
    pub fn greet(
        &mut self,
        hello: Hello,
        buffer: &mut MessageBuffer,
    ) -> Result<Welcome, LinkState> {
        self.version = hello.versions.oldest;
        self.send(&ToDaemon::Hello(hello), buffer)?;
        self.wait_for(PollFlags::IN)?;
        let answer = match self.receive_of_any_version(buffer) {
            // A daemon that knows no labels takes a greeting with one for nonsense, and hangs up.
            Err(LinkState::NoDaemon(Errno::CONNRESET)) if !hello.label.is_empty() => {
                return Err(LinkState::Refused(RefusalReason::Version));
            }
            answer => answer?,
        };
        let (received, version) = answer.ok_or(LinkState::NoDaemon(Errno::TIMEDOUT))?;
        let (answer, [donation, device]) = received;
        if !matches!(answer, ToAgent::Refused(_)) && !hello.versions.contain(version) {
            return Err(LinkState::Protocol);
        }
        self.version = version;
        match (answer, donation) {
            (ToAgent::Welcome { salt }, Some(donation)) => Ok(Welcome {
                salt,
                donation,
                device,
            }),
            (ToAgent::Refused(reason), _) => Err(LinkState::Refused(reason)),
            _ => Err(LinkState::Protocol),
        }
    }

    /// Waits for a message.
    pub fn answer<'b>(
        &self,
        buffer: &'b mut MessageBuffer,
    ) -> Result<(ToAgent<'b>, Descriptors), LinkState> {
        self.wait_for(PollFlags::IN)?;
        self.receive(buffer)?
            .ok_or(LinkState::NoDaemon(Errno::TIMEDOUT))
    }

    /// Sends a message, waiting for room if need be.
    pub fn send(
        &self,
        message: &ToDaemon<'_>,
        buffer: &mut MessageBuffer,
    ) -> Result<(), LinkState> {
        self.send_with(message, &[], buffer)
    }

    /// The same with descriptors, [`HANDED_IN`] at most.
    pub fn send_with(
        &self,
        message: &ToDaemon<'_>,
        descriptors: &[BorrowedFd<'_>],
        buffer: &mut MessageBuffer,
    ) -> Result<(), LinkState> {
        let len = message.encode(buffer).map_err(|_| LinkState::Protocol)?;
        self.version.stamp(buffer);
        let bytes = buffer.0.get(..len).ok_or(LinkState::Protocol)?;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_IN))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let rights = SendAncillaryMessage::ScmRights(descriptors);
            if !descriptors.is_empty() && !control.push(rights) {
                return Err(LinkState::Protocol);
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_for(PollFlags::OUT)?,
                Err(errno) => return Err(LinkState::NoDaemon(errno)),
            }
        }
    }

    /// Receives a message if one is there.
    pub fn receive<'b>(
        &self,
        buffer: &'b mut MessageBuffer,
    ) -> Result<Option<(ToAgent<'b>, Descriptors)>, LinkState> {
        match self.receive_of_any_version(buffer)? {
            Some((received, version)) if version == self.version => Ok(Some(received)),
            Some(_) => Err(LinkState::Protocol),
            None => Ok(None),
        }
    }

    fn receive_of_any_version<'b>(
        &self,
        buffer: &'b mut MessageBuffer,
    ) -> Result<Option<(Received<'b>, Version)>, LinkState> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut buffer.0)];
            match recvmsg(&self.socket, &mut parts, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(LinkState::NoDaemon(errno)),
            }
        };
        if received.bytes == 0 {
            return Err(LinkState::NoDaemon(Errno::CONNRESET));
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(LinkState::Protocol);
        }
        let mut descriptors = Descriptors::default();
        let sent = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        for (place, fd) in descriptors.iter_mut().zip(sent.flatten()) {
            *place = Some(fd);
        }
        let bytes = buffer.0.get(..received.bytes).ok_or(LinkState::Protocol)?;
        let message = ToAgent::decode(bytes).map_err(|_| LinkState::Protocol)?;
        let version = Version::of(bytes).ok_or(LinkState::Protocol)?;
        Ok(Some(((message, descriptors), version)))
    }

    fn wait_for(&self, event: PollFlags) -> Result<(), LinkState> {
        loop {
            match poll(&mut [PollFd::new(&self.socket, event)], Some(&PATIENCE)) {
                Ok(0) => return Err(LinkState::NoDaemon(Errno::TIMEDOUT)),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(LinkState::Failed(errno)),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{Link, LinkState};
    use ksm_engine::wire::{
        Birth, Hello, Label, MAX_MESSAGE, MessageBuffer, RefusalReason, Versions,
    };
    use rustix::io::Errno;
    use rustix::net::{
        AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen,
        recv, socket_with,
    };

    #[test]
    fn a_daemon_that_hangs_up_on_a_label_is_too_old_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddrUnix::new(dir.path().join("s")).unwrap();
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 1).unwrap();
        let greeted = |label: &str| {
            let mut link = Link::connect(&address).unwrap();
            let hello = Hello {
                pid: 1,
                parent: 0,
                birth: Birth::default(),
                versions: Versions::SPOKEN.with_labels(),
                label: Label::new(label).unwrap(),
            };
            let mut buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let peer = accept(&listener).unwrap();
                    recv(&peer, &mut [0_u8; 100][..], RecvFlags::empty()).unwrap();
                });
                link.greet(hello, &mut buffer).unwrap_err()
            })
        };
        assert_eq!(greeted(""), LinkState::NoDaemon(Errno::CONNRESET));
        assert_eq!(greeted("web"), LinkState::Refused(RefusalReason::Version));
    }
}
