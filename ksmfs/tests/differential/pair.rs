//! The kernel's directory and ours side by side: makes every call on both and compares what comes back.

use super::home::Home;
use super::operation::{Answer, Caller, FileCall, Operation, PathCall, SLOTS, Step, Target};
use super::side::Side;
use super::unavoidable::{self, Unavoidable};
use crossbeam_channel::{Receiver, Sender};
use ksm_engine::knobs::KsmFile;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid};
use rustix::thread::ClockId;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A thread without privilege that makes calls for the test.
struct Nobody {
    jobs: Sender<(Arc<Mutex<Side>>, Operation)>,
    answers: Receiver<Answer>,
}

impl Nobody {
    fn start() -> Self {
        const NOBODY: u32 = 65_534;
        let (jobs, inbox) = crossbeam_channel::unbounded::<(Arc<Mutex<Side>>, Operation)>();
        let (outbox, answers) = crossbeam_channel::unbounded();
        std::thread::spawn(move || {
            // These change this thread only, unlike the functions of libc.
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            for (side, operation) in inbox {
                let answer = side.lock().perform(&operation);
                if outbox.send(answer).is_err() {
                    break;
                }
            }
        });
        Self { jobs, answers }
    }

    fn perform(&self, side: &Arc<Mutex<Side>>, operation: &Operation) -> Answer {
        self.jobs
            .send((Arc::clone(side), operation.clone()))
            .unwrap();
        self.answers.recv().unwrap()
    }
}

/// The first difference of a sequence.
pub struct Difference(String);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Compared {
    side: Arc<Mutex<Side>>,
    home: Home,
}

/// Both directories.
pub struct Pair {
    kernel: Compared,
    ours: Compared,
    nobody: Nobody,
}

impl Pair {
    pub fn new(kernel: &Path, ours: &Path, outside: &Path) -> Self {
        let compared = |root: &Path| Compared {
            side: Arc::new(Mutex::new(Side::new(root, outside))),
            home: Home::new(root),
        };
        Self {
            kernel: compared(kernel),
            ours: compared(ours),
            nobody: Nobody::start(),
        }
    }

    /// Makes a sequence on both sides, from default values and back to them; the differences that are listed as
    /// unavoidable.
    ///
    /// # Errors
    /// The first difference that is not listed.
    pub fn run(&self, steps: &[Step]) -> Result<Vec<&'static Unavoidable>, Difference> {
        let compared = self.compare(steps);
        let (kernel, ours) = (self.kernel.home.values(), self.ours.home.values());
        self.kernel
            .home
            .tidy(&mut self.kernel.side.lock(), steps, &kernel);
        self.ours
            .home
            .tidy(&mut self.ours.side.lock(), steps, &ours);
        let known = compared?;
        let mut values = kernel.iter().zip(&ours);
        match values.find(|(kernel, ours)| kernel != ours) {
            Some((kernel, ours)) => Err(Difference(format!(
                "afterwards, {} says {:?} in the kernel and {:?} in ksmfs",
                kernel.0, kernel.1, ours.1
            ))),
            None => Ok(known),
        }
    }

    fn compare(&self, steps: &[Step]) -> Result<Vec<&'static Unavoidable>, Difference> {
        let mut known = Vec::new();
        for (place, step) in steps.iter().enumerate() {
            known.extend(self.compare_step(&format!("step {place}"), step)?);
        }
        let files = KsmFile::ALL.map(Target::File).into_iter();
        for target in files.chain([Target::Directory]) {
            let look = Step {
                caller: Caller::Root,
                watch_times: false,
                operation: Operation::At {
                    target,
                    call: PathCall::Status,
                },
            };
            known.extend(self.compare_step("afterwards", &look)?);
        }
        Ok(known)
    }

    fn compare_step(
        &self,
        when: &str,
        step: &Step,
    ) -> Result<Option<&'static Unavoidable>, Difference> {
        let kernel = self.perform(&self.kernel, step);
        let ours = self.perform(&self.ours, step);
        let known = if kernel == ours {
            None
        } else {
            let known = unavoidable::explain(step, &kernel, &ours);
            let describe = || {
                Difference(format!(
                    "{when}: {step:?}\n  kernel: {kernel:?}\n  ksmfs:  {ours:?}"
                ))
            };
            Some(known.ok_or_else(describe)?)
        };
        // What a descriptor does next may depend on what was different, and, as FUSE splices from its cache, on how
        // much that read ahead.
        let splices = matches!(
            step.operation,
            Operation::Copy { .. }
                | Operation::On {
                    call: FileCall::Send { .. } | FileCall::SpliceOut { .. },
                    ..
                }
        );
        if known.is_some() || splices {
            for side in [&self.kernel.side, &self.ours.side] {
                let mut side = side.lock();
                slots_of(&step.operation).for_each(|slot| side.close(slot));
            }
        }
        Ok(known)
    }

    fn perform(&self, on: &Compared, step: &Step) -> Answer {
        let watched = step.watch_times.then(|| {
            let side = on.side.lock();
            let target = side.target(&step.operation)?;
            matches!(target, Target::File(_) | Target::Directory).then(|| side.path(target))
        });
        let watch = watched.flatten().map(|path| {
            let changed = make_old(&path);
            (path, changed)
        });
        let mut answer = match step.caller {
            Caller::Root => on.side.lock().perform(&step.operation),
            Caller::Nobody => self.nobody.perform(&on.side, &step.operation),
        };
        answer.touched = watch.map(|(path, changed)| {
            let stat = rustix::fs::stat(&path).unwrap();
            let now = (stat.st_ctime, stat.st_ctime_nsec);
            [
                stat.st_atime != OLD.0,
                stat.st_mtime != OLD.1,
                now != changed,
            ]
        });
        answer
    }
}

/// Access and modification time of a file that is watched.
const OLD: (i64, i64) = (1_000_000, 2_000_000);

/// Gives a file old times and waits until a change now would show; its change time.
fn make_old(path: &Path) -> (i64, u64) {
    let second = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let times = Timestamps {
        last_access: second(OLD.0),
        last_modification: second(OLD.1),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
    let stat = rustix::fs::stat(path).unwrap();
    let changed = (stat.st_ctime, stat.st_ctime_nsec);
    // The clock that the kernel stamps files with moves with its timer only.
    let moved = || {
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        (now.tv_sec, now.tv_nsec.cast_unsigned()) > changed
    };
    while !moved() {
        std::thread::sleep(Duration::from_millis(1));
    }
    changed
}

fn slots_of(operation: &Operation) -> impl Iterator<Item = usize> {
    let (first, second) = match operation {
        Operation::Open { slot, .. } | Operation::Close { slot } | Operation::On { slot, .. } => {
            (*slot, *slot)
        }
        Operation::Copy { from, to, .. } => (*from, *to),
        Operation::At { .. } => (SLOTS, SLOTS),
    };
    (0..SLOTS).filter(move |slot| *slot == first || *slot == second)
}
