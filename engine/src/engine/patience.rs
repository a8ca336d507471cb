//! How long everybody waits for the agents of one user.
//!
//! A batch ends when all orders are answered, so an agent that answers late holds up all others. The time spent waiting is
//! charged to the user whose order is out longest. With the answer he gets back as much as such work costs; beyond that he
//! has a small share of all time. When he has none left, his agents get no orders until he has some
//! again: what was asked of them counts as lost, as with an agent that died. Where nobody else could go on meanwhile, there is
//! no hurry.

use super::Engine;
use super::mm::Mm;
use super::outbox::Purpose;
use crate::page::{MmId, UserId};
use crate::store::SlotStore;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What may be needed for an order, however small it is: what one costs, and some more.
const PER_ORDER: Duration = Duration::from_micros(150);
/// And for each page it is about.
const PER_PAGE: Duration = Duration::from_micros(4);
/// One part of so many of all time may be spent waiting for late agents.
const SHARE: i64 = 20;
/// The most time that a user can save up.
const MOST: i64 = 500_000_000;
/// What a user begins with, and what he must have again after he had none.
const ENOUGH: i64 = MOST / 4;
/// Beyond this much work what was long ago counts half, in the measure of how fast a user's agents are.
const MEMORY: i64 = 200_000_000;
/// Less work than this says nothing.
const EVIDENCE: i64 = 5_000_000;
/// In so many parts of the prices above is counted how slow a machine is,
const UNIT: i64 = 16;
/// and on one that is twenty times slower nobody is late.
const SLOWEST: i64 = 20 * UNIT;

/// Accounts of all users.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    accounts: BTreeMap<UserId, Account>,
}

/// What one user has, in nanoseconds.
#[derive(Debug, Default)]
struct Account {
    mms: usize,
    credit: i64,
    /// What was charged since the last answer.
    unsettled: i64,
    /// Has used up what he had.
    set_aside: bool,
    /// Time spent waiting for him, ever.
    waited: Duration,
    /// The last time that his agents were at work, and what that work should have cost.
    spent: i64,
    worth: i64,
}

impl Patience {
    /// A process of `user` joins.
    pub(crate) fn joins(&mut self, user: UserId) {
        let account = self.accounts.entry(user).or_insert_with(|| Account {
            credit: ENOUGH,
            ..Account::default()
        });
        account.mms += 1;
    }

    /// A process of `user` has gone. What he owes is remembered.
    pub(crate) fn leaves(&mut self, user: UserId) {
        if let Some(account) = self.accounts.get_mut(&user) {
            account.mms -= 1;
        }
    }

    /// Time has passed.
    pub(crate) fn passes(&mut self, time: Duration) {
        let users = self.accounts.values().filter(|a| a.mms > 0).count();
        let each = nanos(time) / SHARE / i64::try_from(users.max(1)).unwrap_or(i64::MAX);
        self.accounts.retain(|_, account| {
            account.credit = (account.credit + each).min(MOST);
            account.set_aside &= account.credit < ENOUGH;
            account.mms > 0 || account.credit < MOST
        });
    }

    /// That time was spent waiting for `user`. Without `hurry` it costs him nothing.
    pub(crate) fn charge(&mut self, user: UserId, time: Duration, hurry: bool) {
        if let Some(account) = self.accounts.get_mut(&user) {
            account.waited += time;
            if hurry {
                // What a daemon that stood still itself did not notice is nobody's debt.
                account.credit = (account.credit - nanos(time)).max(-MOST);
                account.unsettled += nanos(time);
                account.set_aside |= account.credit < 0;
            }
        }
    }

    /// Agents of `user` were at work for so long, whether anybody waited for that or not.
    pub(crate) fn works(&mut self, user: UserId, time: Duration) {
        if let Some(account) = self.accounts.get_mut(&user) {
            account.spent += nanos(time);
        }
    }

    /// An agent of `user` has answered an order about so many pages.
    pub(crate) fn answered(&mut self, user: UserId, pages: u64) {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let worth = nanos(PER_ORDER + PER_PAGE.saturating_mul(pages)).min(MOST);
        let slowness = self.slowness_of_others(user);
        if let Some(account) = self.accounts.get_mut(&user) {
            let back = account.unsettled.min(worth * slowness / UNIT);
            account.credit = (account.credit + back).min(MOST);
            account.unsettled = 0;
            account.worth += worth;
            if account.worth > MEMORY {
                account.worth /= 2;
                account.spent /= 2;
            }
        }
    }

    /// How many times longer than they should the agents of all others take: a busy machine is nobody's fault.
    fn slowness_of_others(&self, user: UserId) -> i64 {
        let others = self.accounts.iter().filter(|(other, _)| **other != user);
        let (spent, worth) = others.fold((0, 0), |(spent, worth), (_, account)| {
            (spent + account.spent, worth + account.worth)
        });
        if worth < EVIDENCE {
            SLOWEST
        } else {
            // A quarter more: nobody is just like the others.
            (spent * (UNIT + UNIT / 4) / worth).clamp(UNIT, SLOWEST)
        }
    }

    /// Whether orders to agents of `user` are worth waiting for.
    pub(crate) fn has(&self, user: UserId) -> bool {
        self.accounts.get(&user).is_none_or(|a| !a.set_aside)
    }

    /// Whether any other user has processes.
    fn knows_others(&self, user: UserId) -> bool {
        let mut others = self.accounts.iter().filter(|(other, _)| **other != user);
        others.any(|(_, account)| account.mms > 0)
    }

    /// How long `user` can be waited for.
    pub(crate) fn left(&self, user: UserId) -> Duration {
        let credit = self.accounts.get(&user).map_or(0, |a| a.credit + 1);
        Duration::from_nanos(u64::try_from(credit).unwrap_or(0))
    }

    /// Time spent waiting for each user, ever.
    pub(crate) fn waited(&self) -> impl Iterator<Item = (UserId, Duration)> {
        self.accounts
            .iter()
            .map(|(user, account)| (*user, account.waited))
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos())
        .unwrap_or(i64::MAX / 4)
        .min(i64::MAX / 4)
}

impl<S: SlotStore> Engine<S> {
    /// So much time was spent waiting for a process of `user`, outside of any order.
    pub fn charge_waiting(&mut self, user: UserId, time: Duration) {
        let hurry = self.somebody_else_waits(user);
        self.patience.charge(user, time, hurry);
    }

    /// Time has passed while orders were out.
    pub(super) fn charge_for_orders(&mut self, passed: Duration) {
        if !self.ksmd.is_batch() || passed.is_zero() {
            return;
        }
        let user_of = |mm: MmId| self.mms.get(mm).map(|mm| mm.user);
        let at_work: BTreeSet<UserId> = self.outbox.asked().filter_map(user_of).collect();
        let oldest = self.outbox.oldest().and_then(user_of);
        for user in at_work {
            self.patience.works(user, passed);
        }
        if let Some(user) = oldest {
            self.charge_waiting(user, passed);
        }
    }

    /// Whether processes of `user` are worth waiting for.
    #[must_use]
    pub fn has_patience_with(&self, user: UserId) -> bool {
        self.patience.has(user)
    }

    /// Whether orders are given to an mm.
    pub(super) fn is_asked(&self, mm: &Mm) -> bool {
        mm.answers() && self.patience.has(mm.user)
    }

    /// An agent has answered an order.
    pub(super) fn note_answer(&mut self, mm: MmId, purpose: &Purpose) {
        if let Some(mm) = self.mms.get(mm) {
            self.patience.answered(mm.user, purpose.pages());
        }
    }

    /// Whether there is another user whose pages could be looked at.
    pub(super) fn somebody_else_waits(&self, user: UserId) -> bool {
        if !self.patience.knows_others(user) {
            return false;
        }
        let mut others = self.mms.iter().filter(|(_, mm)| mm.user != user);
        others.any(|(_, mm)| self.is_asked(mm) && !mm.regions.is_empty())
    }

    /// Gives up on orders to the agents of a user who has no time left.
    pub(super) fn set_aside_the_late(&mut self) {
        if !self.ksmd.is_batch() {
            return;
        }
        let late = |mm: &MmId| {
            let mm = self.mms.get(*mm);
            mm.is_some_and(|mm| !self.patience.has(mm.user))
        };
        let mut late: Vec<MmId> = self.outbox.asked().filter(late).collect();
        late.sort_unstable();
        late.dedup();
        for mm in late {
            self.lose_orders(mm);
        }
    }

    /// When the user who is waited for has no time left.
    pub(super) fn patience_ends(&self) -> Option<Duration> {
        let oldest = self.outbox.oldest().filter(|_| self.ksmd.is_batch())?;
        let user = self.mms.get(oldest)?.user;
        let hurry = self.somebody_else_waits(user);
        hurry.then(|| self.now + self.patience.left(user))
    }
}
