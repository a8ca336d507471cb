//! How the library is linked: so that loading it costs a program little. See docs/PRELOAD.md.

use std::env;
use std::fs;
use std::path::Path;

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
    for argument in [
        format!("-L{out}"),
        // Addresses that only need the library's own place added take a bit each, and not 24 bytes.
        "-Wl,-z,pack-relative-relocs".to_owned(),
        // Fewer mappings.
        "-Wl,-z,noseparate-code".to_owned(),
    ] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
}
