//! The two tasks that work for the app: a thread, and a process that shares nothing with it but the address space.
//!
//! A thread stops when the app is stopped, and its descriptors are the app's. So the memory is worked on by a task of
//! its own, made with `clone(CLONE_VM)`: it runs on while the app is SIGSTOPped, has its own descriptor table, and
//! with exit signal 0 the app's `waitpid(-1)` does not see it. It has no thread-local storage: it borrows that of the
//! thread that made it, and for that reason the thread makes nothing but plain system calls while it lives.

use super::room::Stack;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// Sent to an agent to make it look for something to do.
pub const WAKE: Signal = Signal::URG;
/// Makes a pidfd one of a thread, not of its process (Linux 6.9).
pub const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
/// Whether the kernel has them, so that the steward's descriptors can be borrowed.
#[must_use]
pub fn threads_have_pidfds() -> bool {
    pidfd_open(rustix::thread::gettid(), PIDFD_THREAD).is_ok()
}

/// All of a kernel signal set, as system calls take it.
static EVERY_SIGNAL: u64 = !0;
const SIGNAL_SET_BYTES: usize = 8;

fn result(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned == -1 {
        // Reads the thread's `errno`, and nothing else.
        let number = std::io::Error::last_os_error().raw_os_error();
        Err(Errno::from_raw_os_error(number.unwrap_or(libc::EINVAL)))
    } else {
        Ok(returned)
    }
}

/// What a new thread does.
pub trait ThreadDuty: Sync {
    /// Runs in the new thread.
    fn run(&self);
}

/// What a new task does.
pub trait TaskDuty: Send {
    /// Runs in the new task. Must not use the heap, any lock of the app, or thread-local storage but `errno`.
    fn run(&mut self);
}

extern "C" fn thread_main<D: ThreadDuty>(duty: *mut c_void) -> *mut c_void {
    // SAFETY: start_thread passed a `&'static D`.
    let duty = unsafe { &*duty.cast::<D>() };
    duty.run();
    std::ptr::null_mut()
}

extern "C" fn task_main<D: TaskDuty>(duty: *mut c_void) -> c_int {
    // SAFETY: run_task passed a `&mut D`, and neither uses it nor returns before this task has ended.
    let duty = unsafe { &mut *duty.cast::<D>() };
    duty.run();
    0
}

/// Starts a detached thread on `stack`. No signal of the app is delivered to it, but for those the C library keeps to
/// itself: `setuid` needs every thread to answer.
pub fn start_thread<D: ThreadDuty>(stack: Stack, duty: &'static D) -> Result<(), Errno> {
    let check = |returned| match returned {
        0 => Ok(()),
        number => Err(Errno::from_raw_os_error(number)),
    };
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: the place is valid for writing the attributes.
    check(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    // SAFETY: pthread_attr_init filled them in.
    let mut attributes = unsafe { attributes.assume_init() };
    // SAFETY: the stack is mapped for the life of the process, and no live task stands on it.
    check(unsafe {
        libc::pthread_attr_setstack(&raw mut attributes, stack.bottom(), stack.len())
    })?;
    // SAFETY: the attributes are initialised.
    check(unsafe {
        libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED)
    })?;
    let mut every = MaybeUninit::uninit();
    // SAFETY: the place is valid for writing a set.
    unsafe { libc::sigfillset(every.as_mut_ptr()) };
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initialised the first set; the second is valid for writing.
    check(unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, every.as_ptr(), before.as_mut_ptr())
    })?;
    let mut thread = MaybeUninit::uninit();
    let argument = std::ptr::from_ref(duty).cast_mut().cast();
    // SAFETY: the attributes are initialised, and entry and argument live for ever.
    let made = check(unsafe {
        libc::pthread_create(
            thread.as_mut_ptr(),
            &raw const attributes,
            thread_main::<D>,
            argument,
        )
    });
    // SAFETY: `before` was filled in by the call that blocked the signals.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    made
}

/// A descriptor that a thread has opened for the task it is about to make. After the clone each of the two has it in
/// its own table, under the same number: the task adopts its copy, the thread drops what is [`LeftBehind`].
#[derive(Debug)]
pub struct HandedOver(RawFd);

/// The thread's copy of a descriptor that was handed over.
#[derive(Debug)]
pub struct LeftBehind(RawFd);

/// Sets a descriptor aside for a task.
pub fn hand_over(fd: OwnedFd) -> (HandedOver, LeftBehind) {
    let number = fd.into_raw_fd();
    (HandedOver(number), LeftBehind(number))
}

impl HandedOver {
    /// The task's copy. Called once, in the task.
    pub fn adopt(&self) -> OwnedFd {
        // SAFETY: the table of the task holds this number since the clone, and nobody else in it owns it.
        unsafe { OwnedFd::from_raw_fd(self.0) }
    }
}

impl Drop for LeftBehind {
    fn drop(&mut self) {
        // SAFETY: hand_over took the thread's ownership of the number.
        unsafe { rustix::io::close(self.0) };
    }
}

/// Makes a task that shares the address space and nothing else, has it do its duty on `stack`, and waits for its end.
/// The task starts with a copy of the thread's descriptors. `pid` holds its process id while it lives.
///
/// When the app has given up a user or group that the task still is, `dismiss` is called and must make the task end: it
/// cannot be killed any more by then. It may do no more than plain system calls.
pub fn run_task<D: TaskDuty>(
    stack: Stack,
    duty: &mut D,
    left_behind: [LeftBehind; 2],
    pid: &AtomicU32,
    dismiss: impl Fn(),
) -> Result<(), Errno> {
    let before = identity();
    let argument = std::ptr::from_mut(duty).cast();
    // SAFETY: stack and duty outlive the task, for we wait for its end. Both tasks share this thread's local storage:
    // the thread makes only plain system calls until then (a poll, a kill, a wait), and the task uses only `errno`.
    let made = unsafe { libc::clone(task_main::<D>, stack.top(), libc::CLONE_VM, argument) };
    drop(left_behind);
    result(made.into())?;
    let task = Pid::from_raw(made).ok_or(Errno::CHILD)?;
    pid.store(made.unsigned_abs(), Ordering::Release);
    let ended = wait_for_end(task, before, dismiss);
    pid.store(0, Ordering::Release);
    ended
}

/// Waits without ever touching thread-local storage.
fn wait_for_end(task: Pid, before: [u32; 6], dismiss: impl Fn()) -> Result<(), Errno> {
    /// After the C library has interrupted the wait, its change of identity may still be going on.
    const SETTLING: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    let options =
        WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let mut settling = Some(&SETTLING);
    if let Ok(handle) = pidfd_open(task, PidfdFlags::empty()) {
        loop {
            let mut watched = [PollFd::new(&handle, PollFlags::IN)];
            match poll(&mut watched, settling) {
                Ok(0) => settling = None,
                Ok(_) => break,
                Err(_) => settling = Some(&SETTLING),
            }
            if !still_has(identity(), before) {
                dismiss();
            }
        }
    }
    loop {
        match waitid(WaitId::Pid(task), options) {
            Err(Errno::INTR) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Whether a process with ids `now` could be again what it was with its effective ids `before`.
fn still_has(now: [u32; 6], before: [u32; 6]) -> bool {
    now[..3].contains(&before[1]) && now[3..].contains(&before[4])
}

/// Gives the calling task a descriptor table of its own with nothing in it.
pub fn leave_descriptors() -> Result<(), Errno> {
    // SAFETY: the call closes descriptors in a private copy of the table, which nobody else uses.
    result(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            0_u32,
            u32::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    })?;
    Ok(())
}

/// Blocks every signal of the calling task, also those that the C library would keep open. A blocked signal that the
/// kernel forces (a fault) kills, whatever handler was copied: the app's handlers never run here.
pub fn block_every_signal() -> Result<(), Errno> {
    // SAFETY: the set is a valid kernel signal set; the old one is not asked for.
    result(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const EVERY_SIGNAL,
            std::ptr::null_mut::<u64>(),
            SIGNAL_SET_BYTES,
        )
    })?;
    Ok(())
}

/// A descriptor that turns readable when [`WAKE`] was sent to the calling task, which must have it blocked.
pub fn wake_descriptor() -> Result<OwnedFd, Errno> {
    let set = 1_u64 << (WAKE.as_raw() - 1);
    // SAFETY: the set is a valid kernel signal set.
    let fd = result(unsafe {
        libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const set,
            SIGNAL_SET_BYTES,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )
    })?;
    let fd = c_int::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that turns readable when the thread `tid` of process `pid` ends; before Linux 6.9, when the process does.
///
/// # Errors
/// `ESRCH` if it has ended already.
pub fn end_of_thread(pid: Pid, tid: Pid) -> Result<OwnedFd, Errno> {
    let handle = match pidfd_open(tid, PIDFD_THREAD) {
        Err(Errno::INVAL) => pidfd_open(pid, PidfdFlags::empty()),
        other => other,
    }?;
    let (pid, tid) = (pid.as_raw_pid(), tid.as_raw_pid());
    // SAFETY: signal 0 only asks. The thread lives, so its number has not become that of another one.
    result(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, 0) })?;
    Ok(handle)
}

/// Puts the calling task under the ordinary scheduling policy, should the app be a real-time one.
pub fn schedule_normally() -> Result<(), Errno> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters outlive the call.
    let returned = unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters) };
    result(returned.into()).map(|_| ())
}

/// Real, effective and saved user and group ids of the calling task.
fn identity() -> [u32; 6] {
    let mut ids = [u32::MAX; 6];
    let [
        user,
        effective_user,
        saved_user,
        group,
        effective_group,
        saved_group,
    ] = &mut ids;
    // SAFETY: the three places are valid for writing.
    unsafe { libc::getresuid(user, effective_user, saved_user) };
    // SAFETY: the three places are valid for writing.
    unsafe { libc::getresgid(group, effective_group, saved_group) };
    ids
}

/// Called around a fork.
pub type ForkHandler = unsafe extern "C" fn();

/// Has `prepare` called before every fork, and `parent` and `child` after it, each in the thread that forks.
pub fn at_fork(
    prepare: Option<ForkHandler>,
    parent: Option<ForkHandler>,
    child: Option<ForkHandler>,
) -> Result<(), Errno> {
    // SAFETY: the functions live for ever and take no arguments.
    match unsafe { libc::pthread_atfork(prepare, parent, child) } {
        0 => Ok(()),
        number => Err(Errno::from_raw_os_error(number)),
    }
}
