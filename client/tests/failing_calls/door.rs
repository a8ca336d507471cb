//! Who stands at the kernel's door and says which call fails.

use super::sys::{Answer, Call, Listener};
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Kinds of calls that an agent makes for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Register,
    Unregister,
    Wake,
    Copy,
    ZeroPage,
    /// From the app to the quarantine.
    Take,
    /// From the quarantine to the app.
    GiveBack,
    Protect,
    Scan,
    MapQuery,
    Map,
    Remap,
    Protection,
    Advise,
    /// Whether memory is locked, which is asked by an advice.
    AskLocked,
    Lock,
    Readv,
    Open,
    Read,
    /// Any other, by its number.
    Other(i32),
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error(Errno),
    /// One page is done, and the call says so.
    Partial,
    /// One page is moved, and the call says that it was not: Linux 6.18 does that when the page is being migrated.
    Denied,
}

/// `MADV_COLD`.
const COLD: u64 = 20;
const ANY: [Fault; 6] = [
    Fault::Error(Errno::NOMEM),
    Fault::Error(Errno::AGAIN),
    Fault::Error(Errno::BUSY),
    Fault::Error(Errno::INTR),
    Fault::Error(Errno::NOENT),
    Fault::Error(Errno::INVAL),
];
impl Kind {
    fn of(call: &Call, app: PageRun) -> Option<Self> {
        let kind = match i64::from(call.number) {
            libc::SYS_ioctl => match call.arguments[1] & 0xffff {
                0xAA00 => Self::Register,
                0xAA01 => Self::Unregister,
                0xAA02 => Self::Wake,
                0xAA03 => Self::Copy,
                0xAA04 => Self::ZeroPage,
                0xAA05 => {
                    let destination = call.word(0) / PAGE_SIZE as u64;
                    if app.contains(destination) {
                        Self::GiveBack
                    } else {
                        Self::Take
                    }
                }
                0xAA06 => Self::Protect,
                0x6610 => Self::Scan,
                0x6611 => Self::MapQuery,
                _ => Self::Other(call.number),
            },
            libc::SYS_mmap => Self::Map,
            libc::SYS_mremap => Self::Remap,
            libc::SYS_mprotect => Self::Protection,
            libc::SYS_madvise if call.arguments[2] == COLD => Self::AskLocked,
            libc::SYS_madvise => Self::Advise,
            libc::SYS_mlock2 => Self::Lock,
            libc::SYS_process_vm_readv => Self::Readv,
            libc::SYS_openat => Self::Open,
            libc::SYS_read => Self::Read,
            // These cannot fail with what they are given, or are the standard library's (which takes that for granted).
            libc::SYS_getpid
            | libc::SYS_gettid
            | libc::SYS_close
            | libc::SYS_munmap
            | libc::SYS_sched_yield
            | libc::SYS_clock_gettime
            | libc::SYS_clock_nanosleep
            | libc::SYS_futex => return None,
            _ => Self::Other(call.number),
        };
        Some(kind)
    }

    pub fn faults(self) -> Vec<Fault> {
        let mut faults = ANY.to_vec();
        match self {
            Self::Take => faults.extend([Fault::Partial, Fault::Denied]),
            Self::ZeroPage | Self::Readv => faults.push(Fault::Partial),
            // Where pages are given back, "nothing is there" and "somebody is at home" are not failures but what the kernel
            // knows of the memory, and the agent goes by it.
            Self::GiveBack => {
                faults.retain(|fault| *fault != Fault::Error(Errno::NOENT));
                faults.push(Fault::Partial);
            }
            // The kernel's own list for this call.
            Self::Copy => faults.truncate(2),
            // `EINVAL` is an answer here.
            Self::AskLocked => faults.truncate(5),
            _ => {}
        }
        faults
    }
}

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    kind: Option<Kind>,
    at: usize,
    times: usize,
    fault: Fault,
}

impl Plan {
    pub fn nothing() -> Self {
        Self {
            kind: None,
            at: 0,
            times: 0,
            fault: Fault::Partial,
        }
    }

    /// The calls of `kind` from number `at` on, `times` of them.
    pub fn new(kind: Kind, at: usize, times: usize, fault: Fault) -> Self {
        Self {
            kind: Some(kind),
            at,
            times,
            fault,
        }
    }

    fn answer(&self, kind: Kind, number: usize, call: &Call) -> Option<Answer> {
        let meant = self.kind == Some(kind) && (self.at..self.at + self.times).contains(&number);
        match self.fault {
            _ if !meant => None,
            Fault::Error(errno) => Some(Answer::Fail(errno)),
            Fault::Partial => call.do_one_page(kind),
            Fault::Denied => call.move_one_and_deny_it(),
        }
    }
}

/// Runs `life` in a thread whose calls are watched; how often each kind was made while armed, and how many failed.
pub fn watch(
    app: PageRun,
    plan: Plan,
    life: impl FnOnce(&AtomicBool) + Send,
) -> (BTreeMap<Kind, usize>, usize) {
    let armed = AtomicBool::new(false);
    // Handed over without a call, because a call would wait for whoever waits for it.
    let descriptor = AtomicI32::new(-1);
    std::thread::scope(|scope| {
        let living = scope.spawn(|| {
            descriptor.store(super::sys::have_calls_watched().unwrap(), Ordering::Release);
            life(&armed);
        });
        let listener = loop {
            match descriptor.load(Ordering::Acquire) {
                -1 => {
                    assert!(!living.is_finished(), "no filter");
                    std::thread::yield_now();
                }
                descriptor => break Listener::adopt(descriptor),
            }
        };
        let mut counts = BTreeMap::new();
        let mut injected = 0;
        while let Some(call) = listener.next() {
            let kind = Kind::of(&call, app).filter(|_| armed.load(Ordering::Acquire));
            let answer = kind.and_then(|kind| {
                let number = counts.entry(kind).or_insert(0);
                *number += 1;
                plan.answer(kind, *number - 1, &call)
            });
            injected += usize::from(answer.is_some());
            listener.answer(&call, answer.unwrap_or(Answer::GoOn));
        }
        living.join().unwrap();
        (counts, injected)
    })
}
