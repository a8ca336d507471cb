//! When pages may be held without much risk of being put aside meanwhile.
//!
//! A task that the scheduler takes from its processor while it holds pages holds them for milliseconds more. That happens at the
//! end of a time slice, and only where others want the processor too. So where that was seen a moment ago no hold begins late in
//! a slice: the agent sleeps for an instant, and wakes with a slice that is new. Yielding does not do: in a control group or
//! session of its own a task yields to nobody.

use rustix::thread::{Timespec, nanosleep};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// How far into a slice holds begin: the kernel's shortest slice (0.7 ms and more, rounded up to a tick).
const GOOD_FOR: Duration = Duration::from_micros(700);
/// Without the processor for so long: it was taken away, and not for an interrupt.
const AWAY: Duration = Duration::from_micros(300);
/// How long that is remembered.
const CONTENDED_FOR: Duration = Duration::from_millis(200);
/// The sleep; the kernel adds its timer's slack.
const INSTANT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000,
};

/// What is known of the present slice. Times since any fixed moments.
#[derive(Debug, Default)]
pub struct Turn {
    /// It began then, or later.
    began: Duration,
    looked: Duration,
    /// Time spent without the processor, ever.
    away: Duration,
    /// Until when others are taken to want the processor.
    contended: Duration,
}

impl Turn {
    /// To be called before pages are held, and before the lock is taken.
    pub fn begin(&mut self) {
        let (before, cpu) = clocks();
        if !self.is_late(before, cpu) {
            return;
        }
        // Whatever ended it, it was long enough.
        let _ = nanosleep(&INSTANT);
        let (now, cpu) = clocks();
        if now.saturating_sub(before) > AWAY {
            self.contended = now + CONTENDED_FOR;
        }
        (self.began, self.looked) = (now, now);
        self.away = now.saturating_sub(cpu);
    }

    fn is_late(&mut self, now: Duration, cpu: Duration) -> bool {
        let away = now.saturating_sub(cpu);
        if away > self.away + AWAY {
            self.began = self.looked;
            self.contended = now + CONTENDED_FOR;
        }
        self.away = away;
        self.looked = now;
        now < self.contended && now.saturating_sub(self.began) > GOOD_FOR
    }
}

/// The time, and the time that the calling task has had a processor.
fn clocks() -> (Duration, Duration) {
    let of = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    (of(ClockId::Monotonic), of(ClockId::ThreadCPUTime))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_slice_is_late_only_where_the_processor_was_taken_away() {
        let mut turn = Turn {
            away: ms(70),
            ..Turn::default()
        };
        for now in 100..200 {
            assert!(!turn.is_late(ms(now), ms(now - 70)), "nobody else is there");
        }
        // Away for 4 ms, at some time after the last look.
        assert!(turn.is_late(ms(204), ms(130)));
        assert!(turn.is_late(ms(205), ms(131)), "and so it stays");
        turn.began = ms(205);
        assert!(!turn.is_late(ms(205), ms(131)), "until a slice is new");
        assert!(turn.is_late(ms(206), ms(132)));
        assert!(
            !turn.is_late(ms(500), ms(426)),
            "or nothing was seen for long"
        );
    }

    #[test]
    fn a_turn_that_is_late_begins_anew() {
        let mut turn = Turn {
            contended: Duration::MAX,
            ..Turn::default()
        };
        let (before, _) = clocks();
        turn.begin();
        assert!(turn.began >= before);
    }
}
