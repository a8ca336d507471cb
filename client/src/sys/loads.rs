//! Reading the app's pages by plain loads, which a task of its own can do without crashing.
//!
//! `process_vm_readv` looks every page up and pins it before it copies: half of what a visit cost. A load needs none of
//! that, and leaves a frame that a fork shares as it is; but where the app has unmapped the page meanwhile it is a fault.
//! An agent that is a task of its own shares no signal handlers with the app, so it can have one that ends the copying there.
//! The copying is one instruction outside the compiler's view: a page that the app writes meanwhile is a torn copy.

use rustix::io::Errno;

/// Proves that the calling task survives faults while it copies.
#[derive(Clone, Copy, Debug)]
pub struct Armed(());

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::Armed;
    use rustix::io::Errno;
    use std::arch::naked_asm;
    use std::ffi::{c_int, c_void};

    /// Of the kernel, not of the C library.
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: u64,
        restorer: usize,
        mask: u64,
    }

    const SA_RESTORER: u64 = 0x0400_0000;
    const SIGNAL_SET_BYTES: usize = 8;
    /// Where [`copy`] can fault, from its beginning, and how long that instruction is.
    const FAULTS_AT: usize = 3;
    const REP_MOVSB: [u8; 2] = [0xF3, 0xA4];

    /// Copies bytes; returns how many are left where a fault ended it.
    #[unsafe(naked)]
    unsafe extern "sysv64" fn copy(to: *mut u8, from: *const u8, len: usize) -> usize {
        naked_asm!("mov rcx, rdx", "rep movsb", "mov rax, rcx", "ret")
    }

    /// Ends a handler.
    #[unsafe(naked)]
    unsafe extern "sysv64" fn restore() {
        naked_asm!("mov eax, 15", "syscall", "ud2")
    }

    fn faulting_instruction() -> usize {
        copy as *const () as usize + FAULTS_AT
    }

    extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let context = context.cast::<libc::ucontext_t>();
        // SAFETY: the kernel passes the interrupted task's context, which the handler may change.
        let registers = unsafe { &mut (*context).uc_mcontext.gregs };
        let Some(at) = registers.get_mut(libc::REG_RIP as usize) else {
            return;
        };
        if usize::try_from(*at).is_ok_and(|at| at == faulting_instruction()) {
            *at += 2;
            return;
        }
        // SAFETY: the kernel passes the signal's description.
        if unsafe { (*info).si_code } > 0 {
            // A fault of the agent's own: it dies of it when it returns, as it would have without a handler.
            let default = Action {
                handler: libc::SIG_DFL,
                flags: 0,
                restorer: 0,
                mask: 0,
            };
            let _ = set_action(signal, &default);
        }
    }

    fn set_action(signal: c_int, action: &Action) -> Result<(), Errno> {
        // SAFETY: the action is the kernel's structure for it, and its functions live for ever.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                std::ptr::from_ref(action),
                std::ptr::null_mut::<c_void>(),
                SIGNAL_SET_BYTES,
            )
        };
        if returned == 0 {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }

    pub(super) fn arm() -> Result<Armed, Errno> {
        // SAFETY: the code of a function can be read, and `copy` is longer than that.
        let code = unsafe { (faulting_instruction() as *const [u8; 2]).read() };
        if code != REP_MOVSB {
            return Err(Errno::NOSYS);
        }
        let action = Action {
            handler: on_fault as *const () as usize,
            flags: u64::from(libc::SA_SIGINFO.cast_unsigned()) | SA_RESTORER,
            restorer: restore as *const () as usize,
            mask: !0,
        };
        let mut faults = 0_u64;
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            set_action(signal, &action)?;
            faults |= 1 << (signal - 1);
        }
        // SAFETY: the set is a valid kernel signal set; the old one is not asked for.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_UNBLOCK,
                &raw const faults,
                std::ptr::null_mut::<u64>(),
                SIGNAL_SET_BYTES,
            )
        };
        if returned == 0 {
            Ok(Armed(()))
        } else {
            Err(Errno::INVAL)
        }
    }

    pub(super) fn copy_bytes(_: Armed, from: usize, to: *mut u8, len: usize) -> usize {
        let from = std::ptr::with_exposed_provenance(from);
        // SAFETY: `to` is memory of `len` bytes that the caller lent for writing; a fault on either side ends the copying
        // and nothing else, for the task is armed.
        len - unsafe { copy(to, from, len) }
    }
}

/// Makes faults survivable while copying. Only for a task that shares its signal handlers with nobody.
///
/// # Errors
/// When it cannot be had.
pub fn arm() -> Result<Armed, Errno> {
    #[cfg(target_arch = "x86_64")]
    return x86_64::arm();
    #[cfg(not(target_arch = "x86_64"))]
    Err(Errno::NOSYS)
}

/// Copies bytes from an address of the app's to memory lent by the caller; returns how many it got before a fault.
pub(super) fn copy_bytes(armed: Armed, from: usize, to: *mut u8, len: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    return x86_64::copy_bytes(armed, from, to, len);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (armed, from, to, len);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::{OwnPages, address_of};
    use crate::sys::room::Stack;
    use crate::sys::task::{TaskDuty, block_every_signal, hand_over, run_task};
    use ksm_engine::page::PAGE_SIZE;
    use std::sync::atomic::AtomicU32;

    /// What a task found that copied from readable memory into the unreadable page behind it.
    struct Copying {
        from: usize,
        to: usize,
        got: Option<[usize; 3]>,
    }

    impl TaskDuty for Copying {
        fn run(&mut self) {
            let armed = block_every_signal().and_then(|()| arm());
            let Ok(armed) = armed else { return };
            let to: *mut u8 = std::ptr::with_exposed_provenance_mut(self.to);
            let behind = PAGE_SIZE + 100;
            self.got = Some([
                copy_bytes(armed, self.from, to, PAGE_SIZE),
                copy_bytes(armed, self.from, to, behind),
                copy_bytes(armed, self.from + PAGE_SIZE, to, PAGE_SIZE),
            ]);
        }
    }

    #[test]
    fn copying_ends_where_memory_cannot_be_read() {
        let mut memory = OwnPages::map(2).expect("memory");
        memory.pages_mut()[0].fill(9);
        let hidden = OwnPages::map(2).expect("memory");
        let second = address_of(memory.run().start + 1);
        // SAFETY: the page is ours, and nothing looks at it until it can be read again.
        unsafe { libc::mprotect(second as *mut _, PAGE_SIZE, libc::PROT_NONE) };
        let mut duty = Copying {
            from: address_of(memory.run().start),
            to: address_of(hidden.run().start),
            got: None,
        };
        let null = || rustix::fs::memfd_create(c"none", rustix::fs::MemfdFlags::CLOEXEC);
        let left = [null(), null()].map(|fd| hand_over(fd.expect("a descriptor")).1);
        let stack = Stack::map(64).expect("memory");
        run_task(stack, &mut duty, left, &AtomicU32::new(0), || {}).expect("a task");
        assert_eq!(duty.got, Some([PAGE_SIZE, PAGE_SIZE, 0]));
        assert_eq!(hidden.pages()[0], [9; PAGE_SIZE]);
    }
}
