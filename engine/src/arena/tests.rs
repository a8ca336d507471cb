use super::{ARENA_BYTES, MemfdStore, sys};
use crate::page::{ArenaId, DomainId, NumaNode, PAGE_SIZE, Slot};
use crate::store::{ARENA_SLOTS, SlotStore, StoreError};
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const ARENA: ArenaId = ArenaId(7);
const ARENA_LEN: usize = PAGE_SIZE * ARENA_SLOTS as usize;

fn slot(index: u32) -> Slot {
    Slot {
        arena: ARENA,
        index,
    }
}

fn filled_store(slots: u32) -> MemfdStore {
    let mut store = MemfdStore::new();
    store.create(ARENA, DomainId(0), None).unwrap();
    for index in 0..slots {
        store
            .write(slot(index), &[[pattern(index); PAGE_SIZE]])
            .unwrap();
    }
    store
}

fn pattern(index: u32) -> u8 {
    u8::try_from(index % 251).unwrap() + 1
}

fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, flags, Mode::empty())
}

fn allocated_bytes(fd: BorrowedFd<'_>) -> i64 {
    rustix::fs::fstat(fd).unwrap().st_blocks * 512
}

fn assert_bytes(store: &MemfdStore, slots: u32) {
    let mut page = [0; PAGE_SIZE];
    for index in 0..slots {
        store.read(slot(index), &mut page).unwrap();
        assert_eq!(page, [pattern(index); PAGE_SIZE], "slot {index}");
    }
}

/// Tries every way of changing bytes from a descriptor that a peer holds.
fn assert_no_way_to_write(store: &MemfdStore, slots: u32) {
    let given = store.descriptor(ARENA).unwrap();
    let byte = [0xee_u8];
    assert_eq!(rustix::io::pwrite(given, &byte, 0), Err(Errno::BADF));
    assert_eq!(rustix::fs::ftruncate(given, 0), Err(Errno::INVAL));
    let allocate = FallocateFlags::empty();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(
        rustix::fs::fallocate(given, punch, 0, 4096),
        Err(Errno::BADF)
    );
    assert!(sys::map_shared(given, ARENA_LEN).is_err());
    let shared = sys::map_shared_read_only(given, ARENA_LEN).unwrap();
    assert!(
        shared.make_mut().is_err(),
        "mprotect made the mapping writable"
    );
    assert_eq!(
        rustix::fs::fcntl_add_seals(given, SealFlags::WRITE),
        Err(Errno::PERM)
    );

    // The owner (or root) may open it for writing once more, and still gets nowhere.
    rustix::fs::fchmod(given, Mode::RUSR | Mode::WUSR).unwrap();
    let writable = reopen(given, OFlags::RDWR).unwrap();
    assert_eq!(rustix::io::pwrite(&writable, &byte, 0), Err(Errno::PERM));
    for size in [0, ARENA_BYTES - 4096, ARENA_BYTES + 4096] {
        assert_eq!(rustix::fs::ftruncate(&writable, size), Err(Errno::PERM));
    }
    assert_eq!(
        rustix::fs::fallocate(&writable, punch, 0, 4096),
        Err(Errno::PERM)
    );
    assert_eq!(
        rustix::fs::fallocate(&writable, allocate, ARENA_BYTES, 4096),
        Err(Errno::PERM)
    );
    assert!(sys::map_shared(writable.as_fd(), ARENA_LEN).is_err());
    let truncating = reopen(given, OFlags::RDWR | OFlags::TRUNC);
    assert_eq!(truncating.map(drop), Err(Errno::PERM));
    assert_bytes(store, slots);
}

#[test]
fn slots_read_back_what_was_written() {
    let store = filled_store(300);
    assert_bytes(&store, 300);
}

#[test]
fn an_arena_being_filled_cannot_be_written_through_its_descriptor() {
    let mut store = filled_store(10);
    assert_no_way_to_write(&store, 10);
    // The store itself goes on.
    store.write(slot(10), &[[pattern(10); PAGE_SIZE]]).unwrap();
    assert_bytes(&store, 11);
}

#[test]
fn a_finished_arena_cannot_be_written_by_anybody() {
    let mut store = filled_store(10);
    store.finish(ARENA);
    assert_no_way_to_write(&store, 10);
    let refused = store.write(slot(10), &[[1; PAGE_SIZE]]);
    assert!(matches!(refused, Err(StoreError::NotOpen(ARENA))));
    let seals = rustix::fs::fcntl_get_seals(store.descriptor(ARENA).unwrap()).unwrap();
    let wanted = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL;
    assert!(seals.contains(wanted), "{seals:?}");
}

#[test]
fn only_written_slots_take_memory() {
    let store = filled_store(10);
    let bytes = allocated_bytes(store.descriptor(ARENA).unwrap());
    assert_eq!(bytes, 10 * 4096);
}

#[test]
fn descriptors_are_read_only_for_other_users_too() {
    let store = filled_store(1);
    let stat = rustix::fs::fstat(store.descriptor(ARENA).unwrap()).unwrap();
    assert_eq!(stat.st_mode & 0o7777, 0o400);
}

#[test]
fn a_released_arena_lives_only_as_long_as_others_hold_it() {
    let mut store = filled_store(3);
    let kept = store
        .descriptor(ARENA)
        .unwrap()
        .try_clone_to_owned()
        .unwrap();
    store.finish(ARENA);
    store.release(ARENA);
    assert!(store.descriptor(ARENA).is_none());
    let mut page = [0; PAGE_SIZE];
    assert!(matches!(
        store.read(slot(0), &mut page),
        Err(StoreError::NotOpen(ARENA))
    ));
    rustix::io::pread(&kept, &mut page[..], 4096).unwrap();
    assert_eq!(page, [pattern(1); PAGE_SIZE]);
    // The store holds nothing more of it: no descriptor of this process but `kept` names the memfd.
    let inode = rustix::fs::fstat(&kept).unwrap().st_ino;
    let mut holders = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let Ok(target) = std::fs::read_link(&path) else {
            continue;
        };
        if target.to_string_lossy().starts_with("/memfd:ksm-arena")
            && rustix::fs::stat(&path).is_ok_and(|s| s.st_ino == inode)
        {
            holders += 1;
        }
    }
    assert_eq!(holders, 1);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().any(|line| {
        line.contains("/memfd:ksm-arena")
            && line.split_ascii_whitespace().nth(4) == Some(inode.to_string().as_str())
    });
    assert!(!mapped);
}

/// On a machine with several nodes the slots lie where they were asked for; with one, there.
#[test]
fn slots_lie_on_the_node_that_was_asked_for() {
    let online = std::fs::read_to_string("/sys/devices/system/node/online");
    let online = online.unwrap_or_else(|_| "0".into());
    let nodes: Vec<u16> = online
        .trim()
        .split(',')
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse().unwrap()..=last.parse::<u16>().unwrap()
        })
        .collect();
    println!("NUMA nodes of this machine: {nodes:?}");
    for node in nodes {
        let mut store = MemfdStore::new();
        let wanted = Some(NumaNode(node));
        store.create(ARENA, DomainId(0), wanted).unwrap();
        for index in 0..3 {
            store.write(slot(index), &[[1; PAGE_SIZE]]).unwrap();
        }
        let mapping = sys::map_shared_read_only(store.descriptor(ARENA).unwrap(), ARENA_LEN);
        let mapping = mapping.unwrap();
        for page in 0..3 {
            let at = mapping.get(page * PAGE_SIZE).unwrap();
            assert_eq!(*at, 1);
            assert_eq!(sys::node_of(at), Ok(NumaNode(node)));
        }
    }
    // A node that is not there keeps nothing from being stored.
    let mut store = MemfdStore::new();
    let nowhere = Some(NumaNode(1023));
    store.create(ARENA, DomainId(0), nowhere).unwrap();
    store.write(slot(0), &[[1; PAGE_SIZE]]).unwrap();
}

#[test]
fn slots_outside_the_arena_are_refused() {
    let mut store = filled_store(1);
    let outside = store.write(slot(ARENA_SLOTS), &[[1; PAGE_SIZE]]);
    assert!(matches!(outside, Err(StoreError::NotOpen(ARENA))));
    let mut page = [0; PAGE_SIZE];
    assert!(store.read(slot(ARENA_SLOTS), &mut page).is_err());
}

/// As after a write that found memory for a part of its slots only.
#[test]
fn slots_that_have_memory_already_are_written_all_the_same() {
    let mut store = MemfdStore::new();
    store.create(ARENA, DomainId(0), None).unwrap();
    for index in [1, 2, 4] {
        store.write(slot(index), &[[0xEE; PAGE_SIZE]]).unwrap();
    }
    let pages: Vec<_> = (0..6).map(|index| [pattern(index); PAGE_SIZE]).collect();
    store.write(slot(0), &pages).unwrap();
    for index in 0..6 {
        let mut read = [0; PAGE_SIZE];
        store.read(slot(index), &mut read).unwrap();
        assert_eq!(read, [pattern(index); PAGE_SIZE], "slot {index}");
    }
}
