//! A FUSE mirror of `/sys/kernel/mm/ksm`, backed by a user-space merging engine.
//!
//! [`mount`] starts a daemon: [`tree`] is the directory, [`fuse`] its FUSE side, [`daemon`] the thread that owns the
//! engine and talks to agents, [`mailbox`] what lies between the two. [`status`] reads such a directory, or the
//! kernel's own.
#![deny(unsafe_code)]

pub mod ask;
mod bell;
pub mod cli;
pub mod daemon;
pub mod demo;
pub mod exec;
pub mod footprint;
pub mod fuse;
pub mod mailbox;
pub mod mountpoint;
mod namespace;
pub mod policy;
pub mod processes;
pub mod quotas;
pub mod running;
pub mod sandbox;
pub mod serve;
pub mod settle;
pub mod status;
pub mod tree;
pub mod uffd;

pub use running::{End, Options, Running, StartError, mount};
pub use serve::{ServeError, serve};
