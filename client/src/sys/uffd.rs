//! userfaultfd: taking pages away from the app and giving them back (Linux 6.8 for `MOVE`).
//!
//! Two descriptors are kept, because a descriptor is either asynchronous or synchronous in its write protection: one
//! moves pages, the other one holds writers off pages that cannot be moved. Both are of the full mode, so that system
//! calls wait too. **When the last copy of a descriptor is closed, whoever waits for a held page goes on and finds a
//! hole**: the app must keep a copy beside the agent's.

use super::memory::{address_of, length_of};
use super::remap::AppPages;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use linux_raw_sys::general as raw;
use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Opcode, Setter, Updater, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const TYPE: u8 = 0xAA;
const API: Opcode = opcode::read_write::<raw::uffdio_api>(TYPE, 0x3F);
const REGISTER: Opcode = opcode::read_write::<raw::uffdio_register>(TYPE, 0);
const UNREGISTER: Opcode = opcode::read::<raw::uffdio_range>(TYPE, 1);
const WAKE: Opcode = opcode::read::<raw::uffdio_range>(TYPE, 2);
const COPY: Opcode = opcode::read_write::<raw::uffdio_copy>(TYPE, 3);
const ZEROPAGE: Opcode = opcode::read_write::<raw::uffdio_zeropage>(TYPE, 4);
const MOVE: Opcode = opcode::read_write::<raw::uffdio_move>(TYPE, 5);
const WRITEPROTECT: Opcode = opcode::read_write::<raw::uffdio_writeprotect>(TYPE, 6);
const NEW: Opcode = opcode::none(TYPE, 0);
/// `UFFDIO_*_MODE_DONTWAKE` of all calls but write protection.
const DONTWAKE: u64 = 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const PROTECT: u64 = 1;

/// What to wait for in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Accesses to absent pages.
    Missing,
    /// Writes to protected pages.
    Protected,
    /// Nothing: writes lift the protection.
    Written,
}

/// How far a call came that goes page by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages done.
    pub pages: u64,
    /// Why it stopped; `None` if it is through.
    pub stopped: Option<Errno>,
}

/// One userfaultfd of this address space.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Makes one, through an open `/dev/userfaultfd` if there is one, else by the system call (which needs a privilege
    /// unless `vm.unprivileged_userfaultfd` is set).
    ///
    /// # Errors
    /// `EPERM` without privilege and device; `EINVAL` if the kernel lacks a feature.
    fn new(device: Option<BorrowedFd<'_>>, features: u32) -> Result<Self> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        let fd = match device {
            // SAFETY: the call makes a descriptor and touches no memory.
            None => unsafe { userfaultfd(flags) }?,
            Some(device) => new_from(device, flags)?,
        };
        let mut api = raw::uffdio_api {
            api: raw::UFFD_API.into(),
            features: features.into(),
            ioctls: 0,
        };
        update::<API, _>(&fd, &mut api)?;
        Ok(Self(fd))
    }

    /// Makes accesses to the pages of `run` wait as told. The run must be one of our own mappings or registered pages.
    ///
    /// # Errors
    /// `EBUSY` if another userfaultfd has them, `EINVAL` if the mapping cannot, `ENOMEM` if it cannot be split.
    fn register_run(&self, run: PageRun, wait: Wait) -> Result<()> {
        let mode = match wait {
            // Protection that was there stays, and goes when the pages are unregistered. Without the mode it would be
            // left behind in the page table, where it means later that nothing was written.
            Wait::Missing => raw::UFFDIO_REGISTER_MODE_MISSING | raw::UFFDIO_REGISTER_MODE_WP,
            Wait::Protected | Wait::Written => raw::UFFDIO_REGISTER_MODE_WP,
        };
        let mut argument = raw::uffdio_register {
            range: range(run),
            mode: mode.into(),
            ioctls: 0,
        };
        update::<REGISTER, _>(&self.0, &mut argument)
    }

    /// The same for the app's pages.
    ///
    /// # Errors
    /// See above.
    pub fn register(&self, pages: AppPages, wait: Wait) -> Result<()> {
        self.register_run(pages.run(), wait)
    }

    /// Prepares a mapping of ours to receive moved pages.
    ///
    /// # Errors
    /// See above.
    pub fn register_quarantine(&self, run: PageRun) -> Result<()> {
        self.register_run(run, Wait::Missing)
    }

    /// Ends the waiting, wakes those who wait, lifts write protection.
    ///
    /// # Errors
    /// `EINVAL` if the pages are not (all) mapped any more.
    pub fn unregister(&self, pages: AppPages) -> Result<()> {
        set::<UNREGISTER, _>(&self.0, range(pages.run()))
    }

    /// Ends the waiting in all of the pages that are still mapped, whatever it takes: pages that stay registered make
    /// the app wait for ever.
    pub fn release(&self, pages: AppPages) {
        if self.unregister_patiently(pages).is_err() {
            // Some page of it was unmapped meanwhile: the others still want to be as they were.
            for i in 0..pages.run().len {
                let _ = self.unregister_patiently(pages.part(i, 1));
            }
        }
        let _ = self.wake(pages);
    }

    /// Splitting and joining mappings takes memory, and there is some sooner or later.
    fn unregister_patiently(&self, pages: AppPages) -> Result<()> {
        loop {
            match self.unregister(pages) {
                Err(Errno::NOMEM | Errno::AGAIN | Errno::INTR) => rustix::thread::sched_yield(),
                result => return result,
            }
        }
    }

    /// Lets those who wait look again.
    ///
    /// # Errors
    /// None that is known.
    pub fn wake(&self, pages: AppPages) -> Result<()> {
        set::<WAKE, _>(&self.0, range(pages.run()))
    }

    /// Moves the app's pages to `to` in the quarantine. Each page moves in one step; the kernel refuses pages that
    /// are pinned or shared by a fork.
    pub fn take(&self, pages: AppPages, to: u64) -> Progress {
        self.relocate(pages.run(), to)
    }

    /// Moves pages from `from` in the quarantine back to the app, and wakes who waits for them.
    pub fn give_back(&self, from: u64, pages: AppPages) -> Progress {
        let run = pages.run();
        let source = PageRun {
            start: from,
            len: run.len,
        };
        self.relocate(source, run.start)
    }

    fn relocate(&self, from: PageRun, to: u64) -> Progress {
        let mut argument = raw::uffdio_move {
            dst: address_of(to) as u64,
            src: address_of(from.start) as u64,
            len: length_of(from.len) as u64,
            mode: 0,
            move_: 0,
        };
        let result = update::<MOVE, _>(&self.0, &mut argument);
        progress(result, argument.move_)
    }

    /// Copies one page from the quarantine into an absent page of the app, and wakes who waits for it. For when
    /// it cannot be moved back because the app changed the protection of its mapping meanwhile.
    ///
    /// # Errors
    /// `EEXIST` if something is there already, `ENOENT` if the pages are not registered any more.
    pub fn copy_back(&self, from: u64, page: AppPages) -> Result<()> {
        let mut argument = raw::uffdio_copy {
            dst: address_of(page.run().start) as u64,
            src: address_of(from) as u64,
            len: PAGE_SIZE as u64,
            mode: 0,
            copy: 0,
        };
        update::<COPY, _>(&self.0, &mut argument)
    }

    /// Puts the zero page under absent pages, without waking.
    pub fn zero(&self, pages: AppPages) -> Progress {
        let mut argument = raw::uffdio_zeropage {
            range: range(pages.run()),
            mode: DONTWAKE,
            zeropage: 0,
        };
        let result = update::<ZEROPAGE, _>(&self.0, &mut argument);
        progress(result, argument.zeropage)
    }

    /// Makes writes to the pages wait until they are woken or mapped anew.
    ///
    /// # Errors
    /// `ENOENT` if the pages are not registered.
    pub fn protect(&self, pages: AppPages) -> Result<()> {
        let mut argument = raw::uffdio_writeprotect {
            range: range(pages.run()),
            mode: PROTECT,
        };
        update::<WRITEPROTECT, _>(&self.0, &mut argument)
    }
}

/// The two descriptors that merging needs.
#[derive(Debug)]
pub struct Userfaults {
    /// Moves pages.
    pub moving: Uffd,
    /// Write-protects pages, synchronously.
    pub protecting: Uffd,
}

impl Userfaults {
    /// Makes both, for the address space of the caller.
    ///
    /// # Errors
    /// `EPERM` without privilege and device; `EINVAL` if the kernel lacks a feature.
    pub fn new(device: Option<BorrowedFd<'_>>) -> Result<Self> {
        let moving = raw::UFFD_FEATURE_MOVE | raw::UFFD_FEATURE_WP_ASYNC;
        let protecting = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP | raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
        let unpopulated = raw::UFFD_FEATURE_WP_UNPOPULATED;
        Ok(Self {
            moving: Uffd::new(device, moving | unpopulated)?,
            protecting: Uffd::new(device, protecting | unpopulated)?,
        })
    }

    /// A second pair of descriptors for the same thing.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let copy = |uffd: &Uffd| rustix::io::fcntl_dupfd_cloexec(&uffd.0, 3).map(Uffd);
        Ok(Self {
            moving: copy(&self.moving)?,
            protecting: copy(&self.protecting)?,
        })
    }

    /// The pair whose descriptors were [those](Self::descriptors) of another one, copied by other means.
    #[must_use]
    pub fn from_descriptors([moving, protecting]: [OwnedFd; 2]) -> Self {
        Self {
            moving: Uffd(moving),
            protecting: Uffd(protecting),
        }
    }

    /// The descriptors, to be seen that nobody closes them.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.moving.0.as_fd(), self.protecting.0.as_fd()]
    }
}

fn new_from(device: BorrowedFd<'_>, flags: UserfaultfdFlags) -> Result<OwnedFd> {
    /// `USERFAULTFD_IOC_NEW` returns the descriptor.
    struct New(usize);
    // SAFETY: the argument is a number; the kernel touches no memory.
    unsafe impl ioctl::Ioctl for New {
        type Output = RawFd;
        const IS_MUTATING: bool = false;
        fn opcode(&self) -> Opcode {
            NEW
        }
        fn as_ptr(&mut self) -> *mut std::ffi::c_void {
            std::ptr::without_provenance_mut(self.0)
        }
        unsafe fn output_from_ptr(out: i32, _: *mut std::ffi::c_void) -> Result<RawFd> {
            Ok(out)
        }
    }
    // SAFETY: the call makes a descriptor and touches no memory.
    let fd = unsafe { ioctl::ioctl(device, New(flags.bits() as usize)) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn range(run: PageRun) -> raw::uffdio_range {
    raw::uffdio_range {
        start: address_of(run.start) as u64,
        len: length_of(run.len) as u64,
    }
}

/// The kernel writes the bytes done, or the error as a negative number; only a part done is `EAGAIN`.
fn progress(result: Result<()>, done: i64) -> Progress {
    Progress {
        pages: u64::try_from(done).unwrap_or(0) / PAGE_SIZE as u64,
        stopped: result.err(),
    }
}

fn update<const CODE: Opcode, T>(fd: &OwnedFd, argument: &mut T) -> Result<()> {
    // SAFETY: every opcode of this file is built from the type of its argument.
    let call = unsafe { Updater::<CODE, T>::new(argument) };
    // SAFETY: the kernel reads and writes the argument; what it does to memory is what the caller's function is for.
    unsafe { ioctl::ioctl(fd, call) }
}

fn set<const CODE: Opcode, T>(fd: &OwnedFd, argument: T) -> Result<()> {
    // SAFETY: every opcode of this file is built from the type of its argument.
    let call = unsafe { Setter::<CODE, T>::new(argument) };
    // SAFETY: the kernel reads the argument; waking and unregistering change no byte.
    unsafe { ioctl::ioctl(fd, call) }
}

#[cfg(test)]
mod tests {
    use super::{Userfaults, Wait};
    use crate::sys::memory::{OwnPages, address_of, length_of, page_of};
    use crate::sys::remap::{AppPages, READ_WRITE};
    use ksm_engine::page::PageRun;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fs::Timespec;
    use rustix::io::Errno;
    use rustix::mm::{MapFlags, mmap, munmap};
    use std::os::fd::{AsFd, AsRawFd};

    /// What a call says that is made while the page is held; `None` if it waits for the page.
    fn while_held<T: Send>(call: impl Fn(usize) -> T + Sync) -> Option<T> {
        let device = std::fs::File::open("/dev/userfaultfd").expect("root");
        let Userfaults { moving, .. } = Userfaults::new(Some(device.as_fd())).expect("Linux 6.8");
        let mut memory = OwnPages::map(1).expect("memory");
        memory.pages_mut()[0].fill(0);
        let quarantine = OwnPages::map(1).expect("memory");
        let away = quarantine.run();
        moving.register_quarantine(away).expect("registered");
        let pages = AppPages::vouched_for(memory.run());
        moving.register(pages, Wait::Missing).expect("registered");
        assert_eq!(moving.take(pages, away.start).stopped, None);
        let address = address_of(pages.run().start);
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| call(address));
            let device = moving.0.as_fd();
            let mut polled = [PollFd::new(&device, PollFlags::IN)];
            let moment = Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            let waits = loop {
                if caller.is_finished() {
                    break false;
                }
                if poll(&mut polled, Some(&moment)) == Ok(1) {
                    break true;
                }
            };
            assert_eq!(moving.give_back(away.start, pages).stopped, None);
            moving.release(pages);
            let said = caller.join().expect("it only makes a call");
            (!waits).then_some(said)
        })
    }

    fn futex(address: usize, operation: libc::c_int) -> libc::c_long {
        let nobody = std::ptr::null::<libc::timespec>();
        // SAFETY: the word is in mapped memory that nobody else uses.
        unsafe { libc::syscall(libc::SYS_futex, address, operation, 0, nobody, address, 0) }
    }

    fn errno_of(returned: libc::c_long) -> Option<i32> {
        let errno = std::io::Error::last_os_error().raw_os_error();
        errno.filter(|_| returned == -1)
    }

    /// If this fails, the kernel has more accesses wait than when it was written; docs/PROTOCOL.md says what cannot.
    #[test]
    fn some_accesses_fail_while_a_page_is_held() {
        let memory = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem");
        let memory = memory.expect("root");
        let byte = [1];
        let read = while_held(|address| rustix::io::pread(&memory, &mut [0], address as u64));
        assert_eq!(read, Some(Err(Errno::IO)));
        let wrote = while_held(|address| rustix::io::pwrite(&memory, &byte, address as u64));
        assert_eq!(wrote, Some(Err(Errno::IO)));
        let private = libc::FUTEX_PRIVATE_FLAG;
        for operation in [libc::FUTEX_LOCK_PI | private, libc::FUTEX_WAKE_OP | private] {
            let said = while_held(|address| errno_of(futex(address, operation)));
            assert_eq!(said, Some(Some(libc::EFAULT)), "{operation}");
        }
        // But these wait.
        let zero = std::fs::File::open("/dev/zero").expect("there");
        let waits = while_held(|address| {
            let page: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(address);
            // SAFETY: the byte is in mapped memory that nobody else uses.
            unsafe { libc::read(zero.as_fd().as_raw_fd(), page, 1) }
        });
        assert_eq!(waits, None);
        assert_eq!(
            while_held(|address| errno_of(futex(address, libc::FUTEX_WAKE | private))),
            Some(None),
            "needs no page at all"
        );
    }

    /// If this fails, the kernel can do more than when it was written: copies of file pages could be merged, too.
    #[test]
    fn nobody_can_hold_writers_off_a_private_mapping_of_a_file() {
        let device = std::fs::File::open("/dev/userfaultfd").expect("root");
        let userfaults = Userfaults::new(Some(device.as_fd())).expect("Linux 6.8");
        let file = tempfile::tempfile().expect("a file");
        file.set_len(length_of(4) as u64).expect("room");
        let (none, length) = (std::ptr::null_mut(), length_of(4));
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap(none, length, READ_WRITE, MapFlags::PRIVATE, &file, 0) };
        let start = start.expect("memory");
        // SAFETY: the mapping is ours and writable.
        unsafe { start.cast::<u8>().write(1) };
        let run = PageRun {
            start: page_of(start.addr()),
            len: 4,
        };
        assert_eq!(address_of(run.start), start.addr());
        let pages = AppPages::vouched_for(run);
        let Userfaults { moving, protecting } = &userfaults;
        assert_eq!(moving.register(pages, Wait::Missing), Err(Errno::INVAL));
        assert_eq!(
            protecting.register(pages, Wait::Protected),
            Err(Errno::INVAL)
        );
        // SAFETY: nobody uses it any more.
        unsafe { munmap(start, length) }.expect("mapped above");
    }
}
