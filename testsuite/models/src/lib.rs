//! loom models of the hand-overs between agent, app threads and fork.
//!
//! `lock`, `journal`, `tickets` and `told` are the client's own files, included as they are: only the words and the futex below
//! them are loom's ([`word`]). Each of them is also there with a protection removed (`build.rs`), and a model that does not
//! fail then would prove nothing. What is a copy says so: the pages in `holding`, the eventfd in `mailbox`, the daemon's side in
//! `ledger`, all of `remote`.
#![cfg(test)]
#![allow(dead_code, reason = "the models do not call all of what they include")]

mod holding;
mod ledger;
mod locking;
mod mailbox;
mod remote;
mod telling;
mod word;

use loom::model::Builder;

macro_rules! sources {
    ($($name:ident)*) => {
        $(mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        })*
    };
}

sources! {
    lock journal tickets told
    lock_without_waiters_bit lock_taken_without_waiters_bit lock_after_death_as_always lock_kept_by_child lock_with_the_turn_of_the_dead
    journal_stage_first tickets_read_late told_by_everybody
}

/// Runs a model with so many switches that nothing forces.
fn explore(switches: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(switches);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Sees a model fail, as it has to without the protection. Loom aborts where it finds a deadlock: a process of its own.
fn fails(model: &str) {
    let program = std::env::current_exe().expect("this program");
    let ran = std::process::Command::new(program)
        .args(["--ignored", "--exact", model])
        .output();
    let ran = ran.expect("it runs");
    let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(said[0].contains("running 1 test"), "no model {model}");
    assert!(!ran.status.success(), "{model} finds nothing wrong");
    assert!(
        said.iter().any(|said| said.contains("panicked")),
        "{said:?}"
    );
}
