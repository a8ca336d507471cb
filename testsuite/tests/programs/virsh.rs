//! virsh node-memory-tune with a real libvirtd (packages `libvirt-daemon-system`, `libvirt-daemon-driver-qemu`,
//! `libvirt-clients`). The daemon keeps its state in /run, which is a fresh one in the command's namespace.

use super::KIT;
use testsuite::daemon::Daemon;
use testsuite::programs::{installed, said, show};

/// Prints the parameters, sets them, prints them again, tries a bad value; the daemon ends before the script does.
const SCRIPT: &str = r#"
mount -t tmpfs none /run; mkdir /run/libvirt; ip link set lo up
libvirtd >/run/log 2>&1 & daemon=$!
tune() { virsh -q -c qemu:///system node-memory-tune "$@"; }
until [ -S /run/libvirt/libvirt-sock ]; do
    kill -0 $daemon || { cat /run/log >&2; exit 1; }
    sleep 0.05
done
tune; echo ==
tune 333 44 0; tune; echo ==
tune --shm-merge-across-nodes 7 2>/dev/null && bad=0 || bad=$?
echo "bad value: $bad"
kill $daemon; wait $daemon
"#;

#[test]
fn parameters_make_the_round_trip() {
    if !installed(&["libvirtd", "virsh", "unshare", "ip"]) {
        return;
    }
    let daemon = Daemon::start(KIT);
    // No network of the host's for it to manage.
    let seen = said(show(&daemon).args(["unshare", "--net", "--mount", "bash", "-ec", SCRIPT]));
    let parts: Vec<_> = seen.split("==\n").collect();
    let values = |part: &str| {
        let numbers = part.split_whitespace().filter_map(|word| word.parse().ok());
        numbers.collect::<Vec<i64>>()
    };
    assert_eq!(values(parts[0]), [100, 20, 0, 0, 0, 0, 0, 1], "{seen}");
    assert_eq!(values(parts[1]), [333, 44, 0, 0, 0, 0, 0, 0], "{seen}");
    assert!(parts[2].contains("bad value: 1"), "{seen}");
    let files = ["pages_to_scan", "sleep_millisecs", "merge_across_nodes"];
    assert_eq!(files.map(|file| daemon.number(file)), [333, 44, 0]);
}
