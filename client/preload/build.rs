//! How the library is linked: so that loading it costs a program little. See docs/PRELOAD.md.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return;
    }
    let out = env::var("OUT_DIR").expect("cargo sets it");
    // The standard library asks for libgcc_s, which most programs do not load otherwise: a file more to be looked for, mapped
    // and relocated at each start. What it takes from it is linked in instead.
    let stand_in = Path::new(&out).join("libgcc_s.so");
    fs::write(stand_in, "GROUP(-lgcc_eh -lgcc)\n").expect("cargo makes the directory");
    pass(&format!("-L{out}"));
    // Addresses that only need the library's own place added take a bit each, and not 24 bytes.
    pass("-Wl,-z,pack-relative-relocs");
    // Code and constants in one mapping.
    pass("-Wl,-z,noseparate-code");
    // All data in another one, that is not split again once addresses have been filled in: the addresses of the C library's
    // functions that `sys::next` looks up later lie in writable memory anyhow.
    pass("-Wl,-z,norelro");
    // It is never unloaded: the C library's own code jumps into it (`sys::patch`).
    pass("-Wl,-z,nodelete");
    // Without what compilers link to every library for C++ and for start-up of old kinds: it looks for functions that nobody has.
    // All that is missed is an address within the library, any of them, by which the C library knows who registers something.
    pass("-nostartfiles");
    pass("-Wl,--defsym=__dso_handle=prctl");
    // LLVM's linker, which newer compilers take, makes a mapping more.
    if has_gnu_linker() {
        pass("-fuse-ld=bfd");
    }
}

fn pass(argument: &str) {
    println!("cargo:rustc-cdylib-link-arg={argument}");
}

fn has_gnu_linker() -> bool {
    let driver = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    let mut asked = Command::new(driver);
    asked.args(["-fuse-ld=bfd", "-Wl,--version"]);
    asked.stdout(Stdio::null()).stderr(Stdio::null());
    asked.status().is_ok_and(|status| status.success())
}
