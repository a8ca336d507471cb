//! Reaching the calls that the C library and the dynamic loader make by themselves.
//!
//! `free`, thread stacks, `dlclose` and the like change mappings without going through a symbol that could be taken
//! over. But all of them call the same few short functions around a system call. While there is one thread, the first bytes of
//! these are replaced by jumps to ours: before the first request to merge and before the first thread is made, whichever
//! comes first, so that programs that do neither pay nothing. It is done through `/proc/self/mem`, which changes a
//! private copy of the page and no protection: where that is refused, or the bytes are not what they are known to be, all
//! stays as it was.

use super::exports::maps;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pwrite;
use std::ffi::{CStr, c_void};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// `endbr64`, where the machine checks the targets of jumps.
const LANDING: [u8; 4] = [0xF3, 0x0F, 0x1E, 0xFA];
/// Bytes of a function that are looked at.
const LOOK: usize = 64;
/// `jmp *0(%rip)`, followed by the address.
const JUMP: [u8; 6] = [0xFF, 0x25, 0, 0, 0, 0];

/// A function of the C library that makes one system call.
struct Site {
    name: &'static CStr,
    number: libc::c_long,
    ours: *const c_void,
}

fn sites() -> [Site; 6] {
    let site = |name, number, ours| Site { name, number, ours };
    [
        site(c"mmap", libc::SYS_mmap, maps::mmap as *const c_void),
        site(c"munmap", libc::SYS_munmap, maps::munmap as *const c_void),
        site(
            c"mprotect",
            libc::SYS_mprotect,
            maps::mprotect as *const c_void,
        ),
        site(
            c"madvise",
            libc::SYS_madvise,
            maps::madvise as *const c_void,
        ),
        site(c"mremap", libc::SYS_mremap, maps::mremap as *const c_void),
        site(c"brk", libc::SYS_brk, maps::brk as *const c_void),
    ]
}

static DIVERTED: AtomicBool = AtomicBool::new(false);

/// Diverts the C library's own calls, and those of the dynamic loader, unless that has been done. To be called while there is
/// one thread.
pub fn divert_own_calls() {
    if DIVERTED.load(Ordering::Relaxed) || DIVERTED.swap(true, Ordering::Relaxed) {
        return;
    }
    super::call::keeping_errno(divert_all);
}

fn divert_all() {
    if cfg!(not(target_arch = "x86_64")) || !is_single_threaded() {
        return;
    }
    let Ok(memory) = open(
        c"/proc/self/mem",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        return;
    };
    // SAFETY: the name is a C string; NOLOAD runs no code of anybody's.
    let library =
        unsafe { libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return;
    }
    for site in sites() {
        // SAFETY: the handle is that of a loaded library, the name a C string.
        let function = unsafe { libc::dlsym(library, site.name.as_ptr()) };
        if !function.is_null() && makes_call(function, site.number) {
            divert(&memory, function.addr(), site.ours);
        }
    }
    let loader = loader_text();
    for site in sites() {
        if let Some(at) = loader.and_then(|text| find_only(text, &opening(site.number)?)) {
            divert(&memory, at, site.ours);
        }
    }
}

/// Whether there is one thread, as the C library sees it (2.32 or later). Another one could be inside a function that is
/// about to change.
fn is_single_threaded() -> bool {
    // SAFETY: the name is a C string.
    let flag = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
    // SAFETY: if it is there, it is a `char` of the C library.
    !flag.is_null() && unsafe { flag.cast::<u8>().read_volatile() } != 0
}

/// The bytes of `mov $number, %eax; syscall`.
fn mov_and_syscall(number: libc::c_long) -> [u8; 7] {
    let [a, b, ..] = number.to_le_bytes();
    [0xB8, a, b, 0, 0, 0x0F, 0x05]
}

/// Whether a function of the C library is the short one around this system call.
fn makes_call(function: *const c_void, number: libc::c_long) -> bool {
    // SAFETY: the C library's text goes on for longer than this behind any of its short functions.
    let bytes = unsafe { std::slice::from_raw_parts(function.cast::<u8>(), LOOK) };
    let call = mov_and_syscall(number);
    bytes.windows(call.len()).any(|window| window == call)
}

/// How the loader's own copy of a function begins, with the tests of its result that no other place has.
fn opening(number: libc::c_long) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let call = mov_and_syscall(number);
    match number {
        libc::SYS_munmap | libc::SYS_mprotect => {
            bytes.extend(call);
            // cmp $-4095, %rax; jae
            bytes.extend([0x48, 0x3D, 0x01, 0xF0, 0xFF, 0xFF, 0x73]);
        }
        libc::SYS_mmap => {
            // mov %ecx, %r10d; test $4095, %r9d; jne
            bytes.extend([
                0x41, 0x89, 0xCA, 0x41, 0xF7, 0xC1, 0xFF, 0x0F, 0, 0, 0x75, 0x14,
            ]);
            bytes.extend(call);
        }
        _ => return None,
    }
    Some(bytes)
}

/// Where `bytes` occur, if they do once, at the start of a function.
fn find_only(text: &[u8], bytes: &[u8]) -> Option<usize> {
    let at = first_at(text, bytes)?;
    let rest = text.get(at + 1..)?;
    if first_at(rest, bytes).is_some() {
        return None;
    }
    let lands = at.checked_sub(LANDING.len());
    let at = match lands {
        Some(before) if text.get(before..at) == Some(&LANDING) => before,
        _ => at,
    };
    let address = text.as_ptr().addr() + at;
    address.is_multiple_of(16).then_some(address)
}

fn first_at(text: &[u8], bytes: &[u8]) -> Option<usize> {
    let (start, wanted) = (text.as_ptr(), bytes.as_ptr());
    // SAFETY: both are slices with their lengths. The C library's search: this runs at the start of every program.
    let found = unsafe { libc::memmem(start.cast(), text.len(), wanted.cast(), bytes.len()) };
    (!found.is_null()).then(|| found.addr() - start.addr())
}

/// The code of the dynamic loader.
fn loader_text() -> Option<&'static [u8]> {
    // SAFETY: the call only looks up a number.
    let base = usize::try_from(unsafe { libc::getauxval(libc::AT_BASE) }).ok()?;
    let header: *const libc::Elf64_Ehdr = std::ptr::with_exposed_provenance(base);
    if header.is_null() {
        return None;
    }
    // SAFETY: the kernel mapped the loader there, and its headers come first.
    let header = unsafe { header.read() };
    let first: *const libc::Elf64_Phdr =
        std::ptr::with_exposed_provenance(base + usize::try_from(header.e_phoff).ok()?);
    // SAFETY: the header says where the table is, and how long.
    let segments = unsafe { std::slice::from_raw_parts(first, header.e_phnum.into()) };
    let executable = |segment: &&libc::Elf64_Phdr| {
        segment.p_type == libc::PT_LOAD && segment.p_flags & libc::PF_X != 0
    };
    let text = segments.iter().find(executable)?;
    let start: *const u8 =
        std::ptr::with_exposed_provenance(base + usize::try_from(text.p_vaddr).ok()?);
    let len = usize::try_from(text.p_memsz).ok()?;
    // SAFETY: the segment is mapped for as long as the process lives; only this library changes it, a function at a time
    // that has been found by then.
    Some(unsafe { std::slice::from_raw_parts(start, len) })
}

/// Replaces the first bytes of a function by a jump. In one write: it happens whole or not at all.
fn divert(memory: &OwnedFd, function: usize, to: *const c_void) {
    let first: *const [u8; LANDING.len()] = std::ptr::with_exposed_provenance(function);
    // SAFETY: it is the start of a function.
    let lands = unsafe { first.read() } == LANDING;
    let function = if lands {
        function + LANDING.len()
    } else {
        function
    };
    let mut bytes = [0; JUMP.len() + size_of::<usize>()];
    let (jump, target) = bytes.split_at_mut(JUMP.len());
    jump.copy_from_slice(&JUMP);
    target.copy_from_slice(&to.addr().to_le_bytes());
    // Where it fails, calls of that kind go unnoticed; see docs/PRELOAD.md.
    let _ = pwrite(memory, &bytes, function as u64);
}
