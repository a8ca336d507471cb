//! Files that cannot be mapped, as those of sysfs cannot.
//!
//! FUSE refuses shared mappings of a file opened for direct I/O, yet grants private ones: programs that try `mmap`
//! first would find the text and then zeros, and never a new value. A mapping of a file opened for *passthrough* is
//! left to a backing file, while reads and writes still come here, since direct I/O goes before passthrough. So every
//! open names a backing file that has no `mmap`: one of the daemon's own namespaces.
//!
//! Passthrough wants Linux 6.9 and a privileged daemon. Without it private mappings are granted.

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use std::fs::File;
use std::sync::OnceLock;

/// Regular to FUSE, cannot be mapped, and there as long as the daemon is.
const BACKING: &str = "/proc/self/ns/user";

/// What makes opened files unmappable.
#[derive(Debug, Default)]
pub(super) struct Unmappable {
    /// `None` inside: it was tried, and there is no passthrough.
    backing: OnceLock<Option<BackingId>>,
}

impl Unmappable {
    /// Asks the kernel for passthrough.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        let granted = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        if !granted {
            self.give_up("the kernel has no FUSE passthrough");
        }
    }

    /// Answers an open.
    pub(super) fn opened(&self, reply: ReplyOpen, handle: FileHandle, flags: FopenFlags) {
        let backing = self.backing.get_or_init(|| {
            let registered = File::open(BACKING).and_then(|file| reply.open_backing(&file));
            registered
                .inspect_err(|error| log::info!("{BACKING}: {error}: private mappings are granted"))
                .ok()
        });
        match backing {
            Some(backing) => reply.opened_passthrough(handle, flags, backing),
            None => reply.opened(handle, flags),
        }
    }

    fn give_up(&self, why: &str) {
        log::info!("{why}: private mappings are granted");
        // Nobody can have tried before the mount was negotiated.
        let _ = self.backing.set(None);
    }
}
