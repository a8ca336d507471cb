//! Real programs that know /sys/kernel/mm/ksm, and the ways in which others use it. docs/PROGRAMS.md lists them.

mod container;
mod ksmtuned;
mod monitors;
mod moving;
mod node_exporter;
mod readers;
mod tmpfiles;
mod user;
mod virsh;
mod without_exec;

const KIT: &str = env!("CARGO_BIN_EXE_kit");
