//! A process beside an app, through which its owners write to their pages from outside, as a debugger does.

use crate::plot::PATTERNS;
use crate::sys::input;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use testsuite::content::{self, PAGE_SIZE};

/// What it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Write,
    /// Whether the page has this content.
    Compare,
}

/// The app's end.
pub(crate) struct Hand {
    program: PathBuf,
    process: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Hand {
    pub(crate) fn start(program: &Path) -> Result<Self, String> {
        let process = Command::new(program)
            .args(["hand", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = process.map_err(|error| format!("hand: {error}"))?;
        let (to, from) = (process.stdin.take(), process.stdout.take());
        let (Some(to), Some(from)) = (to, from) else {
            return Err("hand: no pipes".to_owned());
        };
        Ok(Self {
            program: program.to_owned(),
            process,
            to,
            from,
        })
    }

    /// Another one, after this one was killed.
    pub(crate) fn replace(&mut self) -> Result<(), String> {
        let _ = self.process.kill();
        let _ = self.process.wait();
        *self = Self::start(&self.program)?;
        Ok(())
    }

    /// Bytes of the page that were written, or are right.
    ///
    /// # Errors
    /// What the system call of the other process said; `UnexpectedEof` or `BrokenPipe` if it is dead.
    pub(crate) fn ask(&mut self, what: Ask, id: u64, address: usize) -> io::Result<usize> {
        let words = [u64::from(what == Ask::Write), id, address as u64];
        let request: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.to.write_all(&request)?;
        let mut answer = [0; 4];
        self.from.read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            bytes @ 0.. => Ok(usize::try_from(bytes).unwrap_or(0)),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

/// The other end: serves the app until it closes the pipe.
pub(crate) fn run(app: i32) -> Result<(), String> {
    testsuite::sys::end_with_parent();
    let pages: Vec<Vec<u8>> = (0..PATTERNS).map(content::page).collect();
    let (mut from, mut to) = (io::stdin().lock(), io::stdout().lock());
    let mut request = [0; 24];
    while from.read_exact(&mut request).is_ok() {
        let word = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&request[8 * i..8 * (i + 1)]);
            u64::from_ne_bytes(bytes)
        };
        let page = &pages[usize::try_from(word(1) % PATTERNS).unwrap_or(0)];
        let address = usize::try_from(word(2)).unwrap_or(0);
        let done = match word(0) {
            0 => compare(app, address, page),
            _ => input::write_to(app, address, page),
        };
        let answer = match done {
            Ok(bytes) => i32::try_from(bytes).unwrap_or(0),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        let said = to
            .write_all(&answer.to_ne_bytes())
            .and_then(|()| to.flush());
        if said.is_err() {
            break;
        }
    }
    Ok(())
}

fn compare(app: i32, address: usize, expected: &[u8]) -> io::Result<usize> {
    let mut page = [0; PAGE_SIZE];
    let got = input::read_from(app, address, &mut page)?;
    let wrong = page[..got].iter().zip(expected).position(|(a, b)| a != b);
    Ok(wrong.unwrap_or(got))
}
