//! Children of an owner: they check what he had when they were forked, write to their own copy, and end.

use crate::board::Kind;
use crate::owner::Owner;
use crate::plot::draw;
use crate::random::Random;
use crate::sys::process::{self, Ended};
use std::process::Command;
use std::sync::{PoisonError, RwLockReadGuard};

pub(crate) struct Child {
    id: i32,
    kind: Kind,
    /// When it was forked.
    moment: u64,
    /// While it is held nobody here gives memory away.
    _there: RwLockReadGuard<'static, ()>,
}

impl Owner {
    pub(crate) fn have_children(&mut self) -> Result<(), String> {
        let kinds = [
            Kind::Fork,
            Kind::Fork,
            Kind::ForkThatWrites,
            Kind::ForkThatWrites,
            Kind::ForkThatExecs,
            Kind::Spawn,
        ];
        match self.random.one_of(&kinds) {
            Kind::Spawn => self.spawn(),
            kind => self.fork(kind),
        }
    }

    /// Forks, and goes on while the child lives.
    fn fork(&mut self, kind: Kind) -> Result<(), String> {
        self.reap()?;
        self.note(format!("{kind:?}"));
        let there = self.app.children.read();
        let there = there.unwrap_or_else(PoisonError::into_inner);
        let moment = self.app.board.moment();
        let random = Random::new(self.random.next());
        let child = process::fork(|| match self.live_as_child(kind, random) {
            Ok(()) => true,
            Err(reason) => {
                // Another thread may have held the lock of the standard error output at the fork.
                let text = format!("torture: child ({kind:?}): {reason}\n{}\n", self.history());
                let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
                false
            }
        });
        if let Some(id) = self.had("fork", moment, child)? {
            self.child = Some(Child {
                id,
                kind,
                moment,
                _there: there,
            });
        }
        Ok(())
    }

    /// Waits for the child that there is.
    pub(crate) fn reap(&mut self) -> Result<(), String> {
        let Some(child) = self.child.take() else {
            return Ok(());
        };
        let ended = process::wait_for(child.id).map_err(|error| format!("waitpid: {error}"))?;
        match ended {
            Ended::Well => self.app.board.count(child.kind),
            Ended::Killed if self.app.board.limited_since(child.moment) => {}
            _ => return Err(format!("a child ({:?}): {ended:?}", child.kind)),
        }
        Ok(())
    }

    fn live_as_child(&mut self, kind: Kind, random: Random) -> Result<(), String> {
        self.random = random;
        self.child = None;
        for _ in 0..=self.random.below(3) {
            self.check_all()?;
            self.pause(10);
            if kind == Kind::ForkThatWrites {
                self.write_as_child()?;
            }
        }
        self.check_all()?;
        if kind == Kind::ForkThatExecs {
            let program = self.app.program.display().to_string();
            let error = process::exec(&program, &["nothing".to_owned()]);
            return Err(format!("exec: {error}"));
        }
        Ok(())
    }

    fn write_as_child(&mut self) -> Result<(), String> {
        for plot in 0..self.plots.len() {
            let run = self.random.stretch(self.plots[plot].len(), 16);
            match self.random.below(4) {
                0 => self.empty(plot, run)?,
                1 => {
                    let moment = self.app.board.moment();
                    let moved = self.plots[plot].memory.move_away();
                    self.moved(moment, moved)?;
                }
                _ => {
                    for page in run {
                        let id = draw(&mut self.random);
                        let way = self
                            .random
                            .one_of(&[Kind::Store, Kind::StoreSlowly, Kind::Read]);
                        self.write(plot, page, id, way)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A program started without a copy of this one.
    fn spawn(&mut self) -> Result<(), String> {
        self.note("spawns".to_owned());
        let moment = self.app.board.moment();
        let status = Command::new(&self.app.program).arg("nothing").status();
        let Some(status) = self.had("spawn", moment, status)? else {
            return Ok(());
        };
        if status.success() {
            self.app.board.count(Kind::Spawn);
        } else if !self.app.board.limited_since(moment) {
            return Err(format!("a spawned program: {status}"));
        }
        Ok(())
    }
}
