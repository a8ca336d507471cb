//! `syscall(2)`: system calls by number.
//!
//! It must not have a frame of its own, for a call may return on another stack or twice. So it is the C library's few
//! instructions, with a look at the number before.

use crate::advice;
use crate::maps;
use crate::mode;
use crate::moving;
use crate::pipes;
use crate::processes;
use crate::sandbox;
use crate::sys::call::{Answer, call, set_errno};
use rustix::io::Errno;
use std::arch::naked_asm;
use std::ffi::{c_int, c_long};

const WORDS: usize = 8;

/// One bit for each number that is ours to look at.
static OURS: [u64; WORDS] = ours();

#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers of system calls are small"
)]
const fn ours() -> [u64; WORDS] {
    let numbers = [
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_pkey_mprotect,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_mlock,
        libc::SYS_mlock2,
        libc::SYS_mlockall,
        libc::SYS_munlock,
        libc::SYS_munlockall,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_vmsplice,
        libc::SYS_process_madvise,
        libc::SYS_shmat,
        libc::SYS_fork,
        libc::SYS_clone,
        libc::SYS_clone3,
    ];
    let mut bits = [0; WORDS];
    let mut i = 0;
    while i < numbers.len() {
        let number = numbers[i].unsigned_abs() as usize;
        bits[number / 64] |= 1 << (number % 64);
        i += 1;
    }
    bits
}

/// `syscall(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    naked_asm!(
        "cmp rdi, 511",
        "ja 2f",
        "lea rax, [rip + {ours}]",
        "bt qword ptr [rax], rdi",
        "jc 4f",
        "2:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "mov rdi, rax",
        "jmp {fail}",
        // Without a frame in between, too: whoever is to return on another stack goes on with the call.
        "4:",
        "cmp rdi, {clone}",
        "jne 5f",
        "test rdx, rdx",
        "jnz 2b",
        "test rsi, {vm}",
        "jnz 2b",
        "jmp {look}",
        "5:",
        "cmp rdi, {clone3}",
        "jne {look}",
        "test rsi, rsi",
        "jz 2b",
        "test qword ptr [rsi], {vm}",
        "jnz 2b",
        "cmp qword ptr [rsi + 40], 0",
        "jne 2b",
        "jmp {look}",
        ours = sym OURS,
        look = sym look,
        fail = sym fail,
        clone = const libc::SYS_clone,
        clone3 = const libc::SYS_clone3,
        vm = const libc::CLONE_VM,
    )
}

extern "C" fn fail(returned: c_long) -> c_long {
    set_errno(Errno::from_raw_os_error(
        c_int::try_from(-returned).unwrap_or(libc::EINVAL),
    ));
    -1
}

extern "C" fn look(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    match answer(number, [a, b, c, d, e, f]) {
        Ok(returned) => returned.cast_signed() as c_long,
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// The low half of an argument, which is all that the kernel takes of an `int`.
fn int(argument: usize) -> c_int {
    let [a, b, c, d, ..] = argument.to_le_bytes();
    c_int::from_le_bytes([a, b, c, d])
}

fn answer(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> Answer {
    match number {
        libc::SYS_mmap => maps::mmap(a, b, c, d, e, f),
        libc::SYS_mprotect => maps::mprotect(a, b, c, None),
        libc::SYS_pkey_mprotect => maps::mprotect(a, b, c, Some(d)),
        libc::SYS_munmap => maps::munmap(a, b),
        libc::SYS_mremap => moving::mremap(a, b, c, d, e),
        libc::SYS_madvise => advice::madvise(a, b, int(c)),
        libc::SYS_vmsplice => pipes::vmsplice(int(a), b, c, d),
        libc::SYS_process_madvise => advice::process_madvise(int(a), b, c, int(d), e),
        libc::SYS_shmat => maps::shmat(int(a), b, int(c)),
        libc::SYS_fork => processes::fork(number, []),
        libc::SYS_clone | libc::SYS_clone3 => processes::fork(number, [a, b, c, d, e]),
        libc::SYS_prctl => mode::prctl(int(a), [b, c, d, e]),
        libc::SYS_seccomp => {
            let make = || call(number, [a, b, c]);
            match u32::try_from(a) {
                Ok(libc::SECCOMP_SET_MODE_STRICT | libc::SECCOMP_SET_MODE_FILTER) => {
                    sandbox::enter(make)
                }
                _ => make(),
            }
        }
        _ => maps::lock(number, [a, b, c]),
    }
}
