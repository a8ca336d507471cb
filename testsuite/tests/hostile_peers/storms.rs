//! Too much of everything: messages, connections, regions, descriptors.

use crate::agent::Agent;
use crate::siege::withstand;
use ksm_engine::order::{OrderId, ReportRef};
use ksm_engine::page::PageRun;
use ksm_engine::wire::ToDaemon;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

#[test]
fn floods() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        let mut asking = Agent::connect(&field.socket);
        for page in 0..10_000u64 {
            let range = PageRun {
                start: 1 + page * 2,
                len: 1 + page % 3,
            };
            let taken = agent.offer(&ToDaemon::Register { range })
                && agent.offer(&ToDaemon::Unregister { range });
            // Asked and never listened to.
            let asked = asking.offer(&ToDaemon::Query);
            if field.is_over() || !(taken || asked) {
                break;
            }
        }
        field.deed();
    });
}

#[test]
fn reports_on_orders_of_others() {
    withstand(|field| {
        for order in 1..2000 {
            let Some(mut agent) = field.join() else {
                return;
            };
            let report = ReportRef::Unmerged { end: u64::MAX };
            let order = OrderId(order);
            while agent.offer(&ToDaemon::Report { order, report }) {
                field.deed();
                if field.is_over() {
                    return;
                }
            }
        }
    });
}

#[test]
fn takes_all_connections_of_its_user() {
    withstand(|field| {
        let mut held = Vec::new();
        while let Some(agent) = (!field.is_over()).then(|| field.join()).flatten() {
            held.push(agent);
        }
        // The next ones say nothing.
        let silent: Vec<_> = (0..100)
            .filter_map(|_| crate::connect(&field.socket).ok())
            .collect();
        field.deed();
        drop((held, silent));
    });
}

#[test]
fn registers_more_regions_than_a_process_can_have() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        let registered = (0..70_000u64).take_while(|region| {
            let range = PageRun {
                start: 1 + region * 2,
                len: 1,
            };
            !field.is_over() && agent.offer(&ToDaemon::Register { range })
        });
        let registered = registered.count();
        assert!(field.is_over() || registered < 70_000, "no limit was met");
        field.deed();
    });
}

#[test]
fn half_closes() {
    withstand(|field| {
        for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let Some(mut agent) = field.join() else {
                return;
            };
            agent.register(0x1000, 4);
            rustix::net::shutdown(&agent.socket, how).unwrap();
            field.deed();
            // Held open until the daemon has noticed, or has had the time to.
            agent.hear_within(std::time::Duration::from_millis(20));
        }
    });
}

/// No ordinary message to the daemon carries descriptors: those that come are closed, and nothing more is heard of whoever
/// sent them.
#[test]
fn sends_descriptors_that_nobody_wants() {
    let descriptors_of = |pid: u32| {
        let directory = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        directory.count()
    };
    withstand(|field| {
        let Some(agent) = field.join() else { return };
        let before = descriptors_of(field.daemon);
        let file = std::fs::File::open("/dev/null").unwrap();
        let many = [file.as_fd(); 253];
        for _ in 0..100 {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            let message = message();
            let sent = rustix::net::sendmsg(
                &agent.socket,
                &[IoSlice::new(&message)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(_) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(errno) => panic!("sendmsg: {errno}"),
            }
        }
        field.deed();
        // They are closed aside. Beside it others come and go, a few descriptors each.
        testsuite::wait::until_true("the descriptors to be closed", || {
            descriptors_of(field.daemon) < before + 100
        });
    });
}

fn message() -> Vec<u8> {
    let mut buffer = Box::new(ksm_engine::wire::MessageBuffer(
        [0; ksm_engine::wire::MAX_MESSAGE],
    ));
    let range = PageRun { start: 16, len: 1 };
    let len = ToDaemon::Unregister { range }.encode(&mut buffer).unwrap();
    buffer.0[..len].to_vec()
}

#[test]
fn talks_nonsense() {
    withstand(|field| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200 {
            let Some(agent) = field.join() else { return };
            let mut bytes = message();
            for _ in 0..4 {
                state = testsuite::content::mix(state.wrapping_add(1));
                let at = usize::try_from(state >> 32).unwrap() % bytes.len();
                bytes[at] = state.to_le_bytes()[0];
            }
            // The end of the connection may come before all of it is said.
            for _ in 0..3 {
                let _ = rustix::net::send(&agent.socket, &bytes, SendFlags::NOSIGNAL);
            }
            field.deed();
            if field.is_over() {
                return;
            }
        }
    });
}
