//! How monitoring and management programs use the files, where the program itself is not in Debian or brings a whole
//! platform with it: the same calls in the same order.

use super::KIT;
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{read, write};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use testsuite::daemon::Daemon;
use testsuite::programs::{said, show};
use testsuite::worker::{Content, Worker};

fn open_file(directory: &Path, name: &str, flags: OFlags) -> OwnedFd {
    open(
        directory.join(name),
        flags | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o666),
    )
    .expect(name)
}

fn read_with(file: &OwnedFd, size: usize) -> String {
    let mut buffer = vec![0; size];
    let len = read(file, &mut buffer).expect("readable");
    buffer.truncate(len);
    String::from_utf8(buffer).expect("text")
}

/// Munin, telegraf, metricbeat, PCP: list the directory and read each file whole, every time anew. What is no number
/// is skipped.
#[test]
fn listing_the_directory_and_reading_every_file() {
    let daemon = Daemon::start(KIT);
    let mut names = Vec::new();
    for entry in fs::read_dir(daemon.mount()).expect("a directory") {
        let entry = entry.expect("an entry");
        assert!(entry.file_type().expect("a type").is_file());
        let text = fs::read_to_string(entry.path()).expect("readable");
        let name = entry.file_name().into_string().expect("text");
        assert_eq!(
            text.trim_end().parse::<i64>().is_err(),
            name == "advisor_mode",
            "{name}: {text}"
        );
        names.push(name);
    }
    assert_eq!(names.len(), 24);
}

/// Netdata and atop's daemon: descriptors are opened once; every second `lseek(0)` and one read.
#[test]
fn descriptors_kept_for_life_never_read_a_stale_byte() {
    let daemon = Daemon::start(KIT);
    let directory = daemon.mount();
    let counters = [
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "pages_volatile",
        "pages_to_scan",
    ];
    let kept = counters.map(|name| open_file(&directory, name, OFlags::RDONLY));
    let sample = || {
        [0, 1, 2, 3, 4].map(|i: usize| {
            seek(&kept[i], SeekFrom::Start(0)).expect("seekable");
            read_with(&kept[i], 4096)
                .trim_end()
                .parse::<i64>()
                .expect("a number")
        })
    };
    assert_eq!(sample(), [0, 0, 0, 0, 100]);
    for value in [7, 123_456, 1, 99] {
        daemon.write("pages_to_scan", &value.to_string());
        assert_eq!(sample()[4], value);
    }
    let mut workers = [0; 2].map(|_| Worker::start(KIT, &daemon.socket(), 0, 100));
    workers
        .iter_mut()
        .for_each(|worker| worker.fill(0, 100, Content::Each(1)));
    daemon.scan_fast();
    testsuite::wait::until_true("the kept descriptors to show it", || {
        sample()[..4] == [100, 100, 0, 0]
    });
    daemon.write("run", "2");
    assert_eq!(sample()[..4], [0, 0, 0, 0]);
}

/// Go's `os.ReadFile` (telegraf, metricbeat, kubevirt, node exporter): the size says 4096, one more is asked for, and
/// reading goes on until nothing comes. `os.WriteFile` (kubevirt): create, truncate, one write without newline.
#[test]
fn go_programs_read_until_nothing_comes_and_write_with_truncation() {
    let daemon = Daemon::start(KIT);
    let directory = daemon.mount();
    let file = open_file(&directory, "pages_to_scan", OFlags::RDONLY);
    assert_eq!(rustix::fs::fstat(&file).expect("a file").st_size, 4096);
    assert_eq!(read_with(&file, 4097), "100\n");
    assert_eq!(read_with(&file, 4093), "");
    for (name, value) in [
        ("sleep_millisecs", "20"),
        ("pages_to_scan", "100"),
        ("run", "1"),
    ] {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let file = open_file(&directory, name, flags);
        assert_eq!(write(&file, value.as_bytes()).expect(name), value.len());
        assert_eq!(daemon.number(name).to_string(), value);
    }
}

/// C's `fopen` and `fscanf` (atop, collectd, Zabbix agent): a buffer of 4096 bytes; a descriptor that is read on.
#[test]
fn c_programs_read_through_a_buffer() {
    let daemon = Daemon::start(KIT);
    let file = open_file(&daemon.mount(), "sleep_millisecs", OFlags::RDONLY);
    assert_eq!(read_with(&file, 1), "2");
    // What belongs together stays together, even if it changes in between.
    daemon.write("sleep_millisecs", "9876");
    assert_eq!(read_with(&file, 4096), "0\n");
}

/// MOM: Python opens for reading and writing by turns, writes numbers as text, and reads back.
#[test]
fn mom_writes_and_reads_back_in_python() {
    let daemon = Daemon::start(KIT);
    let script = "
def write(name, value):
    with open('/sys/kernel/mm/ksm/' + name, 'w') as f: f.write(str(value))
def read(name):
    with open('/sys/kernel/mm/ksm/' + name, 'r') as f: return f.readline().strip()
for run, pages, sleep in ((1, 300, 10), (1, 64, 100), (0, 1250, 20)):
    write('run', run); write('pages_to_scan', pages); write('sleep_millisecs', sleep)
    assert (read('run'), read('pages_to_scan'), read('sleep_millisecs')) == (str(run), str(pages), str(sleep))
print(int(read('pages_sharing')) * 4096, int(read('full_scans')) >= 0)
";
    let seen = said(show(&daemon).args(["python3", "-c", script]));
    assert_eq!(seen, "0 True\n");
    let now = ["run", "pages_to_scan", "sleep_millisecs"].map(|file| daemon.number(file));
    assert_eq!(now, [0, 1250, 20]);
}

/// Proxmox, Nagios and Zabbix scripts: shells and Perl that read one line and compute with it.
#[test]
fn shell_and_perl_scripts_compute_with_the_counters() {
    let daemon = Daemon::start(KIT);
    let script = r#"
set -e; cd /sys/kernel/mm/ksm
[ $(($(cat pages_sharing) * $(getconf PAGESIZE) / 1024)) = 0 ]
[ "$(< run)" = 0 ]; echo 1 > run; [ "$(< run)" = 1 ]
for f in *; do [ -r $f ]; head -n1 $f > /dev/null; done
perl -e 'open(F, "<", "pages_sharing") or die; my $l = <F>; chomp $l; $l == 0 or die "[$l]"'
awk '{ s += $1 } END { exit s != 0 }' pages_sharing pages_shared
grep -H . * | grep -qx full_scans:[0-9]*
"#;
    said(show(&daemon).args(["bash", "-c", script]));
}

/// Whoever is told to wait polls `full_scans` as fast as it can: scanning must go on meanwhile.
#[test]
fn polling_without_pause_does_not_stop_the_scanning() {
    let daemon = Daemon::start(KIT);
    let mut worker = Worker::start(KIT, &daemon.socket(), 0, 100);
    worker.fill(0, 100, Content::Each(1));
    daemon.scan_fast();
    let file = open_file(&daemon.mount(), "full_scans", OFlags::RDONLY);
    let start = daemon.number("full_scans");
    testsuite::wait::until_true("ten scans", || {
        (0..1000).any(|_| {
            seek(&file, SeekFrom::Start(0)).expect("seekable");
            read_with(&file, 64)
                .trim_end()
                .parse::<i64>()
                .expect("a number")
                >= start + 10
        })
    });
}
