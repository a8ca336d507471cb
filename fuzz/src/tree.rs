//! The FUSE operations without FUSE: the tree, and an engine for the values, against a plain model of what sysfs keeps.

use super::bytes::Bytes;
use super::store::Store;
use ksm_engine::engine::{Engine, Written};
use ksm_engine::knobs::KsmFile;
use ksm_engine::process_file::ProcessFile;
use ksm_engine::wire::Figures;
use ksmfs::tree::{Change, ROOT, Shown, Tree, WRITE_LIMIT, accepted_write, refuse_allocation};
use rustix::fs::{Gid, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

/// What an open file has left of the text that was read last: where that goes on, and the text.
type Rest = Option<(u64, Vec<u8>)>;

struct Model {
    /// Mode, owner, group of what was changed, by inode number.
    modes: BTreeMap<u64, (u32, u32, u32)>,
    open: BTreeMap<u64, (Shown, Rest)>,
    attributes: BTreeMap<(u64, Vec<u8>), Vec<u8>>,
}

struct Scene {
    tree: Tree,
    /// Made when a file is read or written for the first time.
    engine: Option<Engine<Store>>,
    model: Model,
    now: u64,
}

const NAMES: [&[u8]; 7] = [
    b"trusted.a",
    b"security.b",
    b"user.c",
    b"trusted.",
    b"system.d",
    b"",
    b"trusted.\xff",
];

pub fn run(data: &[u8]) {
    let start = SystemTime::UNIX_EPOCH;
    let mut scene = Scene {
        tree: Tree::new(Uid::ROOT, Gid::ROOT, start),
        engine: None,
        model: Model {
            modes: BTreeMap::new(),
            open: BTreeMap::new(),
            attributes: BTreeMap::new(),
        },
        now: 0,
    };
    let mut bytes = Bytes(data);
    while !bytes.is_empty() {
        scene.step(&mut bytes);
    }
    for (ino, (mode, uid, gid)) in &scene.model.modes {
        let kept = scene.tree.attributes(*ino).expect("it is there");
        assert_eq!(
            (kept.mode, kept.uid, kept.gid),
            (*mode, *uid, *gid),
            "{ino}"
        );
    }
}

/// The file that has this inode number.
fn file_of(ino: u64) -> Option<KsmFile> {
    let index = usize::try_from(ino.checked_sub(ROOT + 1)?).ok()?;
    KsmFile::ALL.get(index).copied()
}

/// The file of a process that has this inode number: there are two for each process id, whether there is such a process or
/// not. Who has looked one up may open it, and is told when he reads it.
fn process_file_of(ino: u64) -> Option<Shown> {
    let number = ino.checked_sub(1 << 32)?;
    let file = match number % 2 {
        0 => ProcessFile::Stat,
        _ => ProcessFile::MergingPages,
    };
    Some(Shown::Process(u32::try_from(number / 2).ok()?, file))
}

impl Model {
    /// Mode, owner and group of an inode, if there is one.
    fn of(&mut self, ino: u64) -> Option<&mut (u32, u32, u32)> {
        let fresh = match file_of(ino) {
            None if ino == ROOT => 0o755,
            None => return None,
            Some(file) if file.is_writable() => 0o644,
            Some(_) => 0o444,
        };
        Some(self.modes.entry(ino).or_insert((fresh, 0, 0)))
    }
}

impl Scene {
    fn engine(&mut self) -> &mut Engine<Store> {
        let new = || Engine::new(Store::new(8), [1; 32]);
        self.engine.get_or_insert_with(new)
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        self.now += 1;
        match bytes.byte() % 10 {
            0 | 1 => self.open(bytes),
            2 | 3 => self.read(bytes),
            4 => self.write(bytes),
            5 => self.change(bytes),
            6 => self.release(bytes),
            7 => self.extended(bytes),
            8 => {
                let name = String::from_utf8_lossy(bytes.take(6)).into_owned();
                let known = Tree::lookup(&name).is_some();
                assert_eq!(known, KsmFile::from_name(&name).is_some());
            }
            _ => {
                let (offset, length) = (bytes.telling(), bytes.telling());
                let far = u128::from(offset) + u128::from(length) > (1 << 31) - 1;
                let refused = refuse_allocation(offset, length);
                assert_eq!(refused == Errno::FBIG, far);
            }
        }
    }

    fn open(&mut self, bytes: &mut Bytes<'_>) {
        let ino = bytes.telling();
        let flags =
            OFlags::from_bits_retain(u32::from(bytes.byte()) | u32::from(bytes.byte()) << 8);
        let opened = self.tree.open(ino, flags);
        let of_process = process_file_of(ino).map(|shown| (shown, 0o400));
        let of_value = |model: &mut Model| {
            let (mode, ..) = *model.of(ino)?;
            Some((Shown::Value(file_of(ino)?), mode))
        };
        let Some((shown, mode)) = of_process.or_else(|| of_value(&mut self.model)) else {
            let errno = if ino == ROOT {
                Errno::ISDIR
            } else {
                Errno::NOENT
            };
            return assert_eq!(opened, Err(errno));
        };
        let access = flags.bits() & 3;
        let reads = access == 0 || access == 2;
        let writes = access == 1 || access == 2;
        if reads && mode & 0o444 == 0 || writes && mode & 0o222 == 0 {
            return assert_eq!(opened, Err(Errno::ACCESS));
        }
        if flags.contains(OFlags::DIRECT) {
            return assert_eq!(opened, Err(Errno::INVAL));
        }
        let handle = opened.expect("nothing stands against it");
        let old = self.model.open.insert(handle, (shown, None));
        assert!(old.is_none(), "handle {handle} is given twice");
    }

    /// The handle of an open file, or one of none.
    fn handle(&self, bytes: &mut Bytes<'_>) -> u64 {
        let at = bytes.below(self.model.open.len() + 1);
        self.model.open.keys().nth(at).copied().unwrap_or(u64::MAX)
    }

    fn read(&mut self, bytes: &mut Bytes<'_>) {
        let handle = self.handle(bytes);
        let opened = self.tree.opened(handle);
        let Some((shown, _)) = self.model.open.get(&handle) else {
            return assert_eq!(opened.map(|open| open.shown), Err(Errno::BADF));
        };
        let shown = *shown;
        let text = match shown {
            Shown::Value(file) => self.engine().read(file),
            Shown::Process(_, file) => file.text(&Figures::default(), false, false),
        };
        let open = opened.expect("it is open");
        let (_, rest) = self.model.open.get_mut(&handle).expect("it is open");
        assert_eq!(open.shown, shown);
        assert_eq!(open.is_unread(), rest.is_none());
        let goes_on = rest.as_ref().map_or(0, |(at, _)| *at);
        let offset = match bytes.bit() {
            true => goes_on,
            false => bytes.telling(),
        };
        let size = u32::try_from(bytes.telling()).unwrap_or(u32::MAX);
        let (begins, whole) = match rest {
            Some((at, left)) if offset != 0 && *at == offset => (*at, left.clone()),
            _ => {
                let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                (offset, text.bytes().skip(skip).collect())
            }
        };
        let taken: Vec<u8> = whole.iter().copied().take(size as usize).collect();
        let got = open.read_on(offset, size);
        let got = got.unwrap_or_else(|| open.read_fresh(&text, offset, size));
        assert_eq!(got, taken, "{size} bytes of {shown:?} from {offset} on");
        *rest = Some((begins + taken.len() as u64, whole[taken.len()..].to_vec()));
    }

    fn write(&mut self, bytes: &mut Bytes<'_>) {
        let handle = self.handle(bytes);
        let len = usize::from(bytes.byte());
        let text = bytes.take(len);
        let long = [text, &[b'0'; WRITE_LIMIT + 1][..]].concat();
        let text = if len == 0xff { &long } else { text };
        let Ok(open) = self.tree.opened(handle) else {
            return;
        };
        let Shown::Value(file) = open.shown else {
            return assert_eq!(accepted_write(open.shown, text), Err(Errno::IO));
        };
        match accepted_write(open.shown, text) {
            Err(errno) => assert!(errno == Errno::IO && !file.is_writable()),
            Ok((written, accepted)) => {
                assert!(written == file && file.is_writable());
                assert_eq!(accepted, &text[..text.len().min(WRITE_LIMIT)]);
                if let Ok(Written::Pending(ticket)) = self.engine().write(file, accepted) {
                    let finished = self.engine().take_finished();
                    assert_eq!(finished.map(|(done, _)| done), Some(ticket));
                }
            }
        }
    }

    fn change(&mut self, bytes: &mut Bytes<'_>) {
        let ino = bytes.telling();
        let what = bytes.byte();
        let bit = |bit: u8| what & 1 << bit != 0;
        let number = |bytes: &mut Bytes<'_>| u32::from(bytes.byte()) << 4 | u32::from(bytes.byte());
        let time = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let change = Change {
            mode: bit(0).then(|| number(bytes)),
            uid: bit(1).then(|| number(bytes)),
            gid: bit(2).then(|| number(bytes)),
            length: bit(3).then(|| bytes.telling()),
            accessed: bit(4).then(|| time(7)),
            modified: bit(5).then(|| time(8)),
        };
        let before = self.tree.attributes(ino);
        let now = time(self.now);
        let changed = self.tree.change(ino, change, now);
        let Some((mode, uid, gid)) = self.model.of(ino) else {
            return assert_eq!(changed, Err(Errno::NOENT));
        };
        if change.length.is_some_and(|length| length >= 1 << 31) {
            assert_eq!(changed, Err(Errno::FBIG));
            return assert_eq!(self.tree.attributes(ino), before);
        }
        let changed = changed.expect("nothing stands against it");
        assert_eq!(self.tree.attributes(ino), Ok(changed));
        if change.length.is_some() && change.modified.is_none() {
            return assert_eq!(Ok(changed), before);
        }
        *mode = change.mode.map_or(*mode, |mode| mode & 0o7777);
        *uid = change.uid.unwrap_or(*uid);
        *gid = change.gid.unwrap_or(*gid);
        assert_eq!(
            (changed.mode, changed.uid, changed.gid),
            (*mode, *uid, *gid)
        );
        assert_eq!(changed.changed, now);
    }

    fn release(&mut self, bytes: &mut Bytes<'_>) {
        let handle = self.handle(bytes);
        self.tree.release(handle);
        self.model.open.remove(&handle);
        assert!(self.tree.opened(handle).is_err());
    }

    fn extended(&mut self, bytes: &mut Bytes<'_>) {
        let ino = ROOT + bytes.below(KsmFile::ALL.len() + 2) as u64;
        let name = NAMES[bytes.below(NAMES.len())];
        let Ok(kept) = self.tree.extended(ino) else {
            return assert!(self.model.of(ino).is_none());
        };
        let can_be_kept =
            matches!(name, [b't' | b's', ..]) && name != b"trusted." && name != b"system.d";
        let key = (ino, name.to_vec());
        let os_name = OsStr::from_bytes(name);
        match bytes.byte() % 4 {
            0 => {
                let flags = match bytes.below(3) {
                    0 => XattrFlags::empty(),
                    1 => XattrFlags::CREATE,
                    _ => XattrFlags::REPLACE,
                };
                let len = bytes.below(8);
                let value = bytes.take(len);
                let exists = self.model.attributes.contains_key(&key);
                let refused = exists && flags == XattrFlags::CREATE
                    || !exists && flags == XattrFlags::REPLACE;
                let set = kept.set(os_name, value, flags);
                assert_eq!(set.is_ok(), can_be_kept && !refused, "{name:?}");
                if set.is_ok() {
                    self.model.attributes.insert(key, value.to_vec());
                }
            }
            1 => {
                let there = self.model.attributes.get(&key).map(Vec::as_slice);
                assert_eq!(kept.get(os_name).ok(), there);
            }
            2 => {
                let was = self.model.attributes.remove(&key);
                assert_eq!(kept.remove(os_name).is_ok(), was.is_some());
            }
            _ => {
                let privileged = bytes.bit();
                let of_inode = self.model.attributes.keys().filter(|(of, _)| *of == ino);
                let listed =
                    of_inode.filter(|(_, name)| privileged || !name.starts_with(b"trusted."));
                let list: Vec<u8> = listed
                    .flat_map(|(_, name)| [name, &b"\0"[..]].concat())
                    .collect();
                assert_eq!(kept.list(privileged), list);
            }
        }
    }
}
