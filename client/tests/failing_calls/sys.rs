//! Seccomp's user notification: a thread's calls wait until another one has said what becomes of them.
#![allow(
    unsafe_code,
    reason = "installs a filter, and reads what calls point to"
)]

use super::door::Kind;
use ksm_engine::page::PAGE_SIZE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND`.
const RECEIVE: libc::c_ulong = 0xC050_2100;
const SEND: libc::c_ulong = 0xC018_2101;
const _: () = assert!(size_of::<libc::seccomp_notif>() == 0x50);
const _: () = assert!(size_of::<libc::seccomp_notif_resp>() == 0x18);

/// From here on each call of this thread waits for a [`Listener`]; its descriptor.
pub fn have_calls_watched() -> Result<i32, Errno> {
    let mut program = [libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_USER_NOTIF,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program; what it does is the purpose of this module.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    i32::try_from(descriptor)
        .ok()
        .filter(|descriptor| *descriptor >= 0)
        .ok_or(Errno::PERM)
}

/// A call that waits.
#[derive(Debug)]
pub struct Call {
    id: u64,
    pub number: i32,
    pub arguments: [u64; 6],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    GoOn,
    Fail(Errno),
    Return(i64),
}

pub struct Listener(OwnedFd);

impl Listener {
    pub fn adopt(descriptor: i32) -> Self {
        // SAFETY: the filter has just been given this descriptor, and nobody else closes it.
        Self(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    /// The next call; `None` when the thread has ended.
    pub fn next(&self) -> Option<Call> {
        loop {
            let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut watched, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => panic!("poll: {errno}"),
            }
            let events = watched[0].revents();
            if events.contains(PollFlags::HUP) {
                return None;
            }
            if !events.contains(PollFlags::IN) {
                continue;
            }
            // SAFETY: the kernel's structure is plain numbers, and wants to be zero.
            let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes the structure of this request.
            let got = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE, &raw mut notice) };
            if got == 0 {
                return Some(Call {
                    id: notice.id,
                    number: notice.data.nr,
                    arguments: notice.data.args,
                });
            }
        }
    }

    pub fn answer(&self, call: &Call, answer: Answer) {
        let mut response = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match answer {
            Answer::GoOn => {
                response.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap();
            }
            Answer::Fail(errno) => response.error = -errno.raw_os_error(),
            Answer::Return(value) => response.val = value,
        }
        // SAFETY: the kernel reads the structure of this request.
        let sent = unsafe { libc::ioctl(self.0.as_raw_fd(), SEND, &raw mut response) };
        assert_eq!(sent, 0, "the caller is gone");
    }
}

impl Call {
    /// A number of the structure that the third argument points to.
    pub fn word(&self, index: usize) -> u64 {
        // SAFETY: the caller waits with its structure in place; both are of one address space.
        unsafe { self.place(index).read_volatile() }
    }

    fn place(&self, index: usize) -> *mut u64 {
        let address = usize::try_from(self.arguments[2]).unwrap();
        std::ptr::with_exposed_provenance_mut::<u64>(address).wrapping_add(index)
    }

    fn set_word(&self, index: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.place(index).write_volatile(value) };
    }

    /// Does the call in the caller's place, for one page of several; `None` if it is about one page only.
    pub fn do_one_page(&self, kind: Kind) -> Option<Answer> {
        match kind {
            // dst, src, len, mode, done.
            Kind::Take | Kind::GiveBack => self.do_in_part(2, 4, 2 * PAGE_SIZE as u64),
            // start, len, mode, done.
            Kind::ZeroPage => self.do_in_part(1, 3, 2 * PAGE_SIZE as u64),
            Kind::Readv => self.read_one_page(),
            _ => None,
        }
    }

    /// Moves the first page, and says that there was one already where it is now.
    pub fn move_one_and_deny_it(&self) -> Option<Answer> {
        self.do_in_part(2, 4, PAGE_SIZE as u64)?;
        let nothing = i64::from(Errno::EXIST.raw_os_error());
        self.set_word(4, (-nothing).cast_unsigned());
        Some(Answer::Fail(Errno::EXIST))
    }

    fn do_in_part(&self, length: usize, done: usize, least: u64) -> Option<Answer> {
        let mut argument = [0; 5];
        for (index, word) in argument.iter_mut().enumerate().take(done + 1) {
            *word = self.word(index);
        }
        if argument[length] < least {
            return None;
        }
        argument[length] = PAGE_SIZE as u64;
        let descriptor = i32::try_from(self.arguments[0]).unwrap();
        let request = self.arguments[1];
        // SAFETY: the very call that the caller was to make, with less of it.
        let result = unsafe { libc::ioctl(descriptor, request, argument.as_mut_ptr()) };
        if result != 0 {
            return None;
        }
        self.set_word(done, argument[done]);
        // What the kernel says after a part.
        Some(Answer::Fail(Errno::AGAIN))
    }

    fn read_one_page(&self) -> Option<Answer> {
        let local = usize::try_from(self.arguments[1]).unwrap();
        let local = std::ptr::with_exposed_provenance::<libc::iovec>(local);
        // SAFETY: the caller waits with its one vector in place.
        let mut local = unsafe { local.read_volatile() };
        if local.iov_len <= PAGE_SIZE {
            return None;
        }
        local.iov_len = PAGE_SIZE;
        let pid = i32::try_from(self.arguments[0]).unwrap();
        let remote = std::ptr::with_exposed_provenance(usize::try_from(self.arguments[3]).unwrap());
        // SAFETY: the very call that the caller was to make, with less of it.
        let got = unsafe {
            libc::process_vm_readv(pid, &raw const local, 1, remote, self.arguments[4], 0)
        };
        (got >= 0).then(|| Answer::Return(got.try_into().unwrap()))
    }
}
