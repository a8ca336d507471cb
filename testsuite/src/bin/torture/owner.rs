//! The owner of some plots: a thread that draws what to do next, and knows after each step what every page holds.

use crate::app::{App, Diet};
use crate::board::Kind;
use crate::children::Child;
use crate::plot::{Plot, draw};
use crate::random::Random;
use crate::sys::ring::Ring;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const PLOTS: usize = 4;
/// Steps that are remembered, to be told when something is wrong.
const REMEMBERED: usize = 60;
/// How calls say that there is no memory: outright, or for a page of their buffer.
const LACKING: [i32; 4] = [libc::ENOMEM, libc::EAGAIN, libc::EFAULT, libc::EIO];
/// Steps between two looks at everything.
const ROUND: usize = 300;

pub(crate) struct Owner {
    pub(crate) app: &'static App,
    pub(crate) plots: Vec<Plot>,
    pub(crate) random: Random,
    pub(crate) memory: File,
    pub(crate) sockets: (UnixStream, UnixStream),
    pub(crate) ring: Option<Ring>,
    pub(crate) child: Option<Child>,
    steps: VecDeque<String>,
}

impl Owner {
    pub(crate) fn new(app: &'static App, random: Random) -> io::Result<Self> {
        let ring = match app.diet {
            Diet::NoDevices => None,
            Diet::All | Diet::Everything => Some(Ring::new()?),
        };
        let plots: io::Result<Vec<Plot>> = (0..PLOTS).map(|_| Plot::new()).collect();
        Ok(Self {
            app,
            plots: plots?,
            random,
            memory: OpenOptions::new().write(true).open("/proc/self/mem")?,
            sockets: UnixStream::pair()?,
            ring,
            child: None,
            steps: VecDeque::new(),
        })
    }

    /// Works until the run is over.
    pub(crate) fn work(&mut self) -> Result<(), String> {
        let mut step = 0;
        while !self.app.board.is_over() {
            self.step()?;
            step += 1;
            if step % 16 == 0 {
                self.pause(3);
            }
            if step % ROUND == 0 {
                self.check_all()?;
                // Now and then there is time to merge what there is.
                self.pause(120);
            }
        }
        self.reap()?;
        self.check_all()
    }

    pub(crate) fn check_all(&self) -> Result<(), String> {
        for plot in &self.plots {
            plot.check_all(self.app.board)?;
        }
        self.app.board.count(Kind::AllChecked);
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let plot = self.random.below(self.plots.len());
        match self.random.below(100) {
            0..80 => {
                let run = self.random.stretch(self.plots[plot].len(), 8);
                // The same content twice, in neighbours, and in a row.
                let same = self.random.once_in(2).then(|| draw(&mut self.random));
                self.write_run(plot, run, same)
            }
            80..93 => self.change_mapping(plot),
            93..95 => self.watch(plot),
            _ => self.have_children(),
        }
    }

    /// Sleeps for up to so many milliseconds, or not at all.
    pub(crate) fn pause(&mut self, most: usize) {
        let micros = self.random.below(most * 1000);
        if self.random.once_in(2) {
            std::thread::sleep(Duration::from_micros(micros as u64));
        }
    }

    pub(crate) fn note(&mut self, step: String) {
        if self.steps.len() == REMEMBERED {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    /// The last steps.
    pub(crate) fn history(&self) -> String {
        let steps: Vec<&str> = self.steps.iter().map(String::as_str).collect();
        steps.join("\n")
    }

    /// The value of a call. `None` if there was no memory for it while memory was limited.
    pub(crate) fn had<T>(
        &self,
        what: &str,
        moment: u64,
        result: io::Result<T>,
    ) -> Result<Option<T>, String> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if self.app.board.limited_since(moment)
                    && error.raw_os_error().is_some_and(|no| LACKING.contains(&no)) =>
            {
                Ok(None)
            }
            Err(error) => Err(format!("{what}: {error}")),
        }
    }
}
