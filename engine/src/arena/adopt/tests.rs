use super::{Adoptable, Unfit, examine, name_of, parts_of, seal_for_good};
use crate::arena::{ARENA_BYTES, MemfdStore, reopen_read_only};
use crate::page::{ArenaId, DomainId, NumaNode, PAGE_SIZE, Slot};
use crate::store::{ARENA_SLOTS, SlotStore};
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

const ARENA: ArenaId = ArenaId(3);
const DOMAIN: DomainId = DomainId(1000);
const SEALED: SealFlags = SealFlags::GROW
    .union(SealFlags::SHRINK)
    .union(SealFlags::WRITE);

fn slot(index: u32) -> Slot {
    let arena = ARENA;
    Slot { arena, index }
}

/// A store with one arena of which three slots are filled, and what a peer has of it.
fn store(numa: Option<NumaNode>) -> (MemfdStore, OwnedFd) {
    let mut store = MemfdStore::new();
    store.create(ARENA, DOMAIN, numa).unwrap();
    for index in 0..3 {
        store.write(slot(index), &[[7; PAGE_SIZE]]).unwrap();
    }
    let given = store.descriptor(ARENA).unwrap();
    let given = given.try_clone_to_owned().unwrap();
    (store, given)
}

fn why_not(descriptor: OwnedFd) -> Unfit {
    examine(descriptor).expect_err("it is not an arena").why
}

/// A memfd of somebody who knows how arenas look.
fn forged(name: &str, bytes: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let memfd = rustix::fs::memfd_create(name, flags).unwrap();
    rustix::fs::ftruncate(&memfd, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    reopen_read_only(&memfd).unwrap()
}

#[test]
fn a_finished_arena_is_taken_over_with_its_bytes() {
    let (mut old, given) = store(Some(NumaNode(0)));
    old.finish(ARENA);
    drop(old);
    let mut found = examine(given).unwrap();
    assert_eq!(
        (found.domain, found.numa, found.slots, found.is_open),
        (DOMAIN, Some(NumaNode(0)), ARENA_SLOTS, false)
    );
    seal_for_good(&mut found).unwrap();
    let mut new = MemfdStore::new();
    let inode = found.inode;
    new.adopt(ARENA, found);
    assert_eq!(new.with_inode(DOMAIN, inode), Some(ARENA));
    assert_eq!(new.with_inode(DomainId(1001), inode), None);
    let mut page = [0; PAGE_SIZE];
    new.read(slot(2), &mut page).unwrap();
    assert_eq!(page, [7; PAGE_SIZE]);
    assert!(new.write(slot(3), &[page]).is_err(), "it takes no more");
    new.release(ARENA);
    assert_eq!(new.take_released(), [ARENA]);
    assert_eq!(new.with_inode(DOMAIN, inode), None);
}

/// What is still mapped for writing is not taken over: its daemon lives, and can change what is there.
#[test]
fn an_arena_that_was_being_filled_is_sealed_once_its_daemon_is_dead() {
    let (mut old, given) = store(None);
    let mut found = examine(given).unwrap();
    assert!(found.is_open);
    assert_eq!(seal_for_good(&mut found), Err(Errno::BUSY));
    assert!(found.is_open);
    old.write(slot(3), &[[8; PAGE_SIZE]]).unwrap();
    drop(old);
    seal_for_good(&mut found).unwrap();
    assert!(!found.is_open);
    let Adoptable { memfd, .. } = found;
    let seals = rustix::fs::fcntl_get_seals(&memfd).unwrap();
    assert!(seals.contains(SEALED | SealFlags::SEAL), "{seals:?}");
    let stat = rustix::fs::fstat(&memfd).unwrap();
    assert_eq!(stat.st_mode & 0o7777, 0o400);
    assert!(!examine(memfd).unwrap().is_open);
}

#[test]
fn nothing_else_is_taken_over() {
    let name = name_of(DOMAIN, None);
    let as_it_should = || forged(&name, ARENA_BYTES, SEALED);
    // Whoever can do that could as well have been a daemon.
    assert!(examine(as_it_should()).is_ok());

    for seals in [
        SealFlags::empty(),
        SealFlags::WRITE | SealFlags::GROW,
        SealFlags::WRITE | SealFlags::SHRINK,
        SealFlags::GROW | SealFlags::SHRINK,
    ] {
        let unsealed = forged(&name, ARENA_BYTES, seals);
        assert_eq!(why_not(unsealed), Unfit::Unsealed, "{seals:?}");
    }
    for (name, bytes) in [
        (name.as_str(), ARENA_BYTES - 4096),
        (name.as_str(), ARENA_BYTES + 1),
        ("ksm-arena", ARENA_BYTES),
        ("ksm-arena-1 domain=-1 node=any slots=8192", ARENA_BYTES),
        ("ksm-arena-1 domain=1 node=any slots=0", 0),
        ("ksm-arena-1 domain=1 node=any slots=131072", 131_072 * 4096),
        ("ksm-arena-1 domain=1 node= slots=8192", ARENA_BYTES),
        ("\u{fffd}", ARENA_BYTES),
    ] {
        assert_eq!(why_not(forged(name, bytes, SEALED)), Unfit::Name, "{name}");
    }
    let foreign = as_it_should();
    rustix::fs::fchown(&foreign, Some(Uid::from_raw(1234)), Some(Gid::from_raw(0))).unwrap();
    assert_eq!(why_not(foreign), Unfit::Owner(1234));

    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let writable = rustix::fs::memfd_create(name.as_str(), flags).unwrap();
    assert_eq!(why_not(writable), Unfit::Access);
    let file = rustix::fs::open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(why_not(file), Unfit::NotMemory);
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    assert_eq!(why_not(pipe), Unfit::NotMemory);
    let directory = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
    assert_eq!(why_not(directory), Unfit::NotMemory);
    let on_tmpfs = rustix::fs::open("/dev/shm", OFlags::RDONLY, Mode::empty()).unwrap();
    let why = why_not(on_tmpfs);
    assert!(matches!(why, Unfit::Unsealed | Unfit::NotMemory), "{why:?}");
}

#[test]
fn names_say_what_they_were_made_of() {
    for (domain, numa) in [(0, None), (u32::MAX, Some(NumaNode(1023)))] {
        let name = name_of(DomainId(domain), numa);
        assert_eq!(parts_of(&name), Some((DomainId(domain), numa, ARENA_SLOTS)));
    }
    let arena = forged(&name_of(DOMAIN, None), ARENA_BYTES, SEALED);
    let again = arena.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(examine(arena).unwrap().inode, examine(again).unwrap().inode);
}
