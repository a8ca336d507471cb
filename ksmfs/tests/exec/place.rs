//! What is seen inside and outside, also where the kernel has no KSM.

use super::stage::wait_for;
use super::{KSM, exec_sh, said, stage_in_namespace};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

/// Covers a directory and shows its entries again, but for one.
fn hide(directory: &str, name: &str) -> String {
    format!(
        "mkdir -p /tmp/all; mount -t tmpfs none /tmp; mkdir /tmp/all; mount --rbind {directory} /tmp/all
        mount -t tmpfs none {directory}
        for e in $(ls /tmp/all); do [ $e = {name} ] && continue
            if [ -d /tmp/all/$e ]; then mkdir {directory}/$e; else : > {directory}/$e; fi
            mount --rbind /tmp/all/$e {directory}/$e; done
        umount -l /tmp/all; umount /tmp\n"
    )
}

fn files() -> String {
    let mut names = ksm_engine::knobs::KsmFile::ALL.map(ksm_engine::knobs::KsmFile::name);
    names.sort_unstable();
    names.join("\n") + "\n"
}

#[test]
fn the_command_sees_all_files_and_the_host_keeps_its_own() {
    // Other tests mount elsewhere meanwhile.
    let mounts = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let in_sys = all.lines().filter(|line| line.contains(" /sys"));
        in_sys.map(str::to_owned).collect::<Vec<_>>()
    };
    let device = || fs::metadata(KSM).map(|metadata| metadata.dev()).ok();
    let before = (mounts(), device());
    let script = format!("cd {KSM}; ls; echo 4321 > pages_to_scan; cat pages_to_scan; cat >&2");
    let mut command = exec_sh(&["--own"], &script);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut seen = String::new();
    let mut output = child.stdout.take().unwrap();
    wait_for("the command to write", || {
        let mut chunk = [0; 4096];
        let len = output.read(&mut chunk).unwrap();
        seen.push_str(std::str::from_utf8(&chunk[..len]).unwrap());
        seen.ends_with("\n4321\n")
    });
    let during = (mounts(), device());
    let kernels = fs::read_to_string(format!("{KSM}/pages_to_scan")).ok();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(seen, files() + "4321\n");
    assert_eq!(during, before);
    assert_ne!(kernels.as_deref(), Some("4321\n"));
    assert_eq!((mounts(), device()), before);
}

#[test]
fn without_ksm_in_the_kernel_the_directory_above_is_rebuilt() {
    let others = "find /sys/kernel/mm -type f -not -path '*/ksm/*' | sort";
    let script = format!("ls {KSM}; cat {KSM}/run; echo ==; {others}");
    let hidden = hide("/sys/kernel/mm", "ksm")
        + &format!("[ ! -e {KSM} ]; {others}; echo ==; \"$@\"; echo ==; ls /sys/kernel/mm");
    let command = exec_sh(&["--own"], &script);
    let seen = said(&mut stage_in_namespace(&hidden, &command));
    let parts: Vec<_> = seen.split("==\n").collect();
    let [others_before, files_inside, others_inside, after] = parts[..] else {
        panic!("{seen}");
    };
    assert_eq!(files_inside, files() + "0\n");
    assert_eq!(others_inside, others_before);
    assert!(!after.lines().any(|name| name == "ksm"), "{after}");
}

#[test]
fn without_the_directory_above_that_one_is_rebuilt_and_stays_closed() {
    let hidden = hide("/sys/kernel", "mm") + "[ ! -e /sys/kernel/mm ]; exec \"$@\"";
    let script = format!(
        "cat {KSM}/run; ls /sys/kernel/mm; [ -e /sys/kernel/debug ]; [ $(cat /sys/kernel/uevent_seqnum) -gt 0 ]
        ! mkdir {KSM}x 2>/dev/null; ! touch /sys/kernel/new 2>/dev/null"
    );
    let seen = said(&mut stage_in_namespace(
        &hidden,
        &exec_sh(&["--own"], &script),
    ));
    assert_eq!(seen, "0\nksm\n");
}

#[test]
fn mounts_stay_inside_where_they_would_spread() {
    // As on most machines: what is mounted in one namespace is mounted in those made from it, and the other way round.
    let shared = "mount --make-rshared /; export OUTSIDE=$$; \"$@\"";
    let script =
        format!("cat {KSM}/run; grep ' {KSM} .*ksmfs' /proc/$OUTSIDE/mountinfo || echo none");
    let command = exec_sh(&["--own"], &script);
    let seen = said(&mut stage_in_namespace(shared, &command));
    assert_eq!(seen, "0\nnone\n");
}
