//! An app: threads that own pages, until the run is over or the app replaces itself by a new one.

use crate::board::{Board, Kind};
use crate::hand::Hand;
use crate::owner::Owner;
use crate::plot::PATTERNS;
use crate::random::Random;
use crate::sys::process;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};
use testsuite::content;

const THREADS: u64 = 5;
/// How long an app is one program, at least and in addition.
const LIFE: Duration = Duration::from_secs(3);

/// What makes an app differ from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Diet {
    /// All that there is.
    All,
    /// Nothing that pins pages for devices: then pages that were merged and written since may merge again.
    NoDevices,
    /// All of its memory is merged, not only what was advised.
    Everything,
}

/// What the threads of an app share.
pub(crate) struct App {
    pub(crate) board: &'static Board,
    pub(crate) diet: Diet,
    pub(crate) program: PathBuf,
    /// The contents, and two descriptors of a file with them.
    pub(crate) pages: Vec<Vec<u8>>,
    pub(crate) plain: File,
    pub(crate) direct: Option<File>,
    pub(crate) hand: Mutex<Hand>,
    /// Held for reading while there is a child.
    pub(crate) children: RwLock<()>,
}

/// Files of a run, in its directory.
pub(crate) fn board_in(directory: &Path) -> PathBuf {
    directory.join("board")
}

pub(crate) fn patterns_in(directory: &Path) -> PathBuf {
    directory.join("patterns")
}

/// Lives as app `number`. In its first life it waits for a line on its input.
pub(crate) fn run(number: u64, seed: u64, directory: &Path, life: &str) -> Result<(), String> {
    let start = Instant::now();
    testsuite::sys::end_with_parent();
    process::forget_children();
    if life == "first" {
        let read = std::io::stdin().read_line(&mut String::new());
        read.map_err(|error| format!("input: {error}"))?;
    }
    let app = App::new(number, directory).map_err(|error| format!("app {number}: {error}"))?;
    let app: &'static App = Box::leak(Box::new(app));
    if app.diet == Diet::Everything {
        process::merge_everything().map_err(|error| format!("prctl: {error}"))?;
    }
    for thread in 0..THREADS {
        let random = Random::new(seed ^ thread << 32 ^ number << 48);
        std::thread::spawn(move || {
            if let Err(reason) = own(app, random) {
                eprintln!(
                    "torture: app {number} ({:?}), thread {thread}: {reason}",
                    app.diet
                );
                std::process::exit(1);
            }
            FINISHED.fetch_add(1, Ordering::Release);
        });
    }
    let mut random = Random::new(seed);
    let life = LIFE + LIFE.mul_f64(random.below(1000) as f64 / 500.0);
    while !app.board.is_over() {
        std::thread::sleep(Duration::from_millis(5));
        if start.elapsed() > life {
            app.board.count(Kind::ExecOfApp);
            return Err(again(app, number, random.next(), directory));
        }
    }
    while FINISHED.load(Ordering::Acquire) < THREADS {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn own(app: &'static App, random: Random) -> Result<(), String> {
    let mut owner = Owner::new(app, random).map_err(|error| format!("owner: {error}"))?;
    owner
        .work()
        .map_err(|reason| format!("{reason}\n{}", owner.history()))
}

/// Threads that have come to their good end.
static FINISHED: AtomicU64 = AtomicU64::new(0);

fn again(app: &App, number: u64, seed: u64, directory: &Path) -> String {
    let arguments = [
        "app".to_owned(),
        number.to_string(),
        seed.to_string(),
        directory.display().to_string(),
        "again".to_owned(),
    ];
    let error = process::exec(&app.program.display().to_string(), &arguments);
    format!("exec: {error}")
}

impl App {
    fn new(number: u64, directory: &Path) -> Result<Self, String> {
        let diet = [Diet::All, Diet::NoDevices, Diet::Everything]
            [usize::try_from(number).unwrap_or(0) % 3];
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let open = |flags: i32| {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .custom_flags(flags)
                .open(patterns_in(directory));
            file.map_err(|error| format!("patterns: {error}"))
        };
        let direct = match diet {
            Diet::NoDevices => None,
            Diet::All | Diet::Everything => Some(open(libc::O_DIRECT)?),
        };
        Ok(Self {
            board: Board::open(&board_in(directory))?,
            diet,
            pages: (0..PATTERNS).map(content::page).collect(),
            plain: open(0)?,
            direct,
            hand: Mutex::new(Hand::start(&program)?),
            program,
            children: RwLock::new(()),
        })
    }
}
