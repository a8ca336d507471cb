//! Forked children that have not joined yet.
//!
//! To the kernel a child is registered the moment it exists. Ours join when it suits them, for most end soon; so before the
//! engine looks at everybody, those that the [`Ledger`](ksm_engine::wire::Ledger) of their parent names are called, and
//! waited for: not for those that have ended, and never for long.

use super::donation::DonationBuffer;
use ksm_engine::wire::{CHILDREN, GONE};
use rustix::process::Pid;
use std::time::Duration;

/// How long a child is waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// After a wait in vain a parent's children are not waited for during this time: at most a tenth of it is waiting.
const DISTRUST: Duration = Duration::from_secs(2);

/// The children of one process.
#[derive(Debug, Default)]
pub struct Children {
    /// Forks that have been looked at.
    seen: u32,
    /// Numbers of the children that are missing.
    missing: Vec<u32>,
    /// When the first of them began to be waited for.
    since: Option<Duration>,
    /// Until when nobody is waited for.
    distrusted: Duration,
}

impl Children {
    /// Looks who is missing, calls them, and says until when they are to be waited for.
    pub fn expect(&mut self, ledger: &DonationBuffer, now: Duration) -> Option<Duration> {
        self.look(ledger);
        self.missing
            .retain(|number| may_join(ledger.child(*number)));
        if self.missing.is_empty() || now < self.distrusted {
            self.missing.clear();
            self.since = None;
            return None;
        }
        let until = *self.since.get_or_insert(now) + PATIENCE;
        if now >= until {
            self.missing.clear();
            self.since = None;
            self.distrusted = now + DISTRUST;
            return None;
        }
        ledger.call(self.seen);
        Some(until)
    }

    /// A child has joined.
    pub fn joined(&mut self, ledger: &DonationBuffer, number: u32) {
        self.look(ledger);
        self.missing.retain(|missing| *missing != number);
    }

    fn look(&mut self, ledger: &DonationBuffer) {
        let forks = ledger.forks();
        let new = forks.wrapping_sub(self.seen).min(CHILDREN);
        self.missing
            .extend((0..new).map(|i| forks.wrapping_sub(new - i)));
        let surplus = self.missing.len().saturating_sub(CHILDREN as usize);
        self.missing.drain(..surplus);
        self.seen = forks;
    }
}

/// Whether a child with this process id, 0 for one that has not said it yet, may still come.
fn may_join(pid: u32) -> bool {
    if pid == 0 {
        return true;
    }
    let alive = |pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH);
    pid != GONE && Pid::from_raw(pid.cast_signed()).is_some_and(alive)
}

#[cfg(test)]
mod tests {
    use super::{Children, DISTRUST, PATIENCE};
    use crate::daemon::donation::DonationBuffer;
    use ksm_engine::page::UserId;
    use ksm_engine::wire::{GONE, LEDGER_OFFSET, Ledger};
    use std::mem::offset_of;
    use std::time::Duration;

    /// What an app that forks writes.
    fn note(ledger: &DonationBuffer, offset: usize, value: u32) {
        let at = LEDGER_OFFSET + offset as u64;
        rustix::io::pwrite(ledger.descriptor(), &value.to_ne_bytes(), at).unwrap();
    }

    fn forked(ledger: &DonationBuffer, times: u32) {
        note(ledger, offset_of!(Ledger, forks), times);
    }

    fn says(ledger: &DonationBuffer, number: usize, pid: u32) {
        note(ledger, offset_of!(Ledger, children) + 4 * number, pid);
    }

    #[test]
    fn children_are_waited_for_until_they_have_joined() {
        let ledger = DonationBuffer::new(1, UserId(0)).unwrap();
        let mut children = Children::default();
        let at = Duration::from_secs(50);
        assert_eq!(children.expect(&ledger, at), None);
        forked(&ledger, 2);
        assert_eq!(children.expect(&ledger, at), Some(at + PATIENCE));
        children.joined(&ledger, 1);
        let later = at + PATIENCE / 2;
        assert_eq!(children.expect(&ledger, later), Some(at + PATIENCE));
        children.joined(&ledger, 0);
        assert_eq!(children.expect(&ledger, later), None);
        // One that joins before anybody has missed it.
        forked(&ledger, 3);
        children.joined(&ledger, 2);
        assert_eq!(children.expect(&ledger, later), None);
    }

    #[test]
    fn children_that_exec_or_end_are_not_waited_for() {
        let ledger = DonationBuffer::new(1, UserId(0)).unwrap();
        let mut children = Children::default();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        says(&ledger, 0, GONE);
        says(&ledger, 1, ended.id());
        forked(&ledger, 2);
        assert_eq!(children.expect(&ledger, Duration::ZERO), None);
        says(&ledger, 2, std::process::id());
        forked(&ledger, 3);
        assert!(children.expect(&ledger, Duration::ZERO).is_some());
    }

    #[test]
    fn a_process_that_only_claims_to_fork_makes_nobody_wait_for_long() {
        let ledger = DonationBuffer::new(1, UserId(0)).unwrap();
        let mut children = Children::default();
        let mut now = Duration::ZERO;
        let (mut waited, step) = (Duration::ZERO, Duration::from_millis(1));
        while now < Duration::from_secs(60) {
            // As many and as often as it can.
            forked(
                &ledger,
                u32::try_from(now.as_micros()).unwrap().wrapping_mul(7919),
            );
            if children.expect(&ledger, now).is_some() {
                waited += step;
            }
            now += step;
        }
        assert!(waited < Duration::from_secs(6), "{waited:?} of a minute");
        assert!(waited > DISTRUST, "{waited:?} of a minute");
    }
}
