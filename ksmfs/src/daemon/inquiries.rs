//! Those who ask what merging came to, or have a scan made.

use super::Daemon;
use super::peers::{Peer, Role};
use super::talk::Parting;
use ksm_engine::engine::Written;
use ksm_engine::wire::{MessageBuffer, ProcessFigures, ToAgent};
use std::os::fd::AsFd;

/// Processes of one message.
const AT_ONCE: usize = 256;

impl Daemon {
    /// Whether a peer may see all processes, and have the scan hurry.
    fn is_privileged(peer: &Peer) -> bool {
        let uid = peer.credentials.uid;
        uid == 0 || uid == rustix::process::geteuid().as_raw()
    }

    /// Tells figures of processes: of all, or of the asking user's.
    pub(super) fn tell_processes(
        &mut self,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        peer.role = Role::Asking;
        let (own, all) = (peer.credentials.uid, Self::is_privileged(peer));
        let mut list: Vec<ProcessFigures> = self
            .peers
            .agents()
            .filter(|(uid, _)| all || *uid == own)
            .map(|(uid, agent)| ProcessFigures {
                pid: agent.app.as_raw_nonzero().get().unsigned_abs(),
                uid,
                ..self.engine.process(agent.mm)
            })
            .collect();
        list.sort_unstable_by_key(|process| process.pid);
        for list in list.chunks(AT_ONCE).chain([&[][..]]) {
            let message = ToAgent::Processes { list };
            peer.outbox
                .send(peer.socket.as_fd(), &message, &[], buffer)?;
        }
        Ok(())
    }

    /// Notes that a peer wants everything scanned: what others have said by now is to be known first.
    pub(super) fn want_scan(&mut self, token: u64, peer: &mut Peer) -> Result<(), Parting> {
        peer.role = Role::Asking;
        if !Self::is_privileged(peer) {
            return Err(Parting::OutOfTurn);
        }
        self.scans_wanted.push(token);
        Ok(())
    }

    /// Has everything scanned, and answers when that is done.
    pub(super) fn scan_for(
        &mut self,
        token: u64,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        match self.engine.scan_now() {
            Written::Pending(ticket) => {
                self.scanners.insert(ticket, token);
                Ok(())
            }
            Written::Done => self.tell_scanned(peer, buffer),
        }
    }

    pub(super) fn tell_scanned(
        &self,
        peer: &mut Peer,
        buffer: &mut MessageBuffer,
    ) -> Result<(), Parting> {
        let full_scans = self.engine.full_scans();
        let message = ToAgent::Scanned { full_scans };
        peer.outbox
            .send(peer.socket.as_fd(), &message, &[], buffer)?;
        Ok(())
    }
}
