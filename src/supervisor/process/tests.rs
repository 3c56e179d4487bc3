//! Real processes, started and looked at from outside.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::unistd::{Pid, getpgid, getsid, pipe2};
use tokio::time::timeout;

use super::*;

const UUID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

fn launch(program: &str, args: &[&str], stderr: OwnedFd) -> Launch {
    Launch {
        program: program.into(),
        args: args.iter().map(OsString::from).collect(),
        fds: Vec::new(),
        stderr,
        identity: Identity::Same,
    }
}

fn shell(script: &str, stderr: OwnedFd) -> Launch {
    launch("/bin/sh", &["-c", script], stderr)
}

fn null() -> OwnedFd {
    File::options()
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

async fn end(process: &Process) -> Exit {
    timeout(Duration::from_secs(10), process.exited())
        .await
        .unwrap()
}

/// What a script prints when it is run as a QEMU.
async fn printed(identity: Identity, script: &str) -> String {
    let (read, write) = pipe();
    let process = spawn(Launch {
        identity,
        ..shell(script, write)
    })
    .unwrap();
    assert_eq!(end(&process).await, Exit::Code(0));
    text(read)
}

fn exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn the_ways_to_end_are_told_apart_and_leave_no_zombie() {
    let process = spawn(shell("exit 3", null())).unwrap();
    assert_eq!(end(&process).await, Exit::Code(3));
    assert_eq!(end(&process).await, Exit::Code(3));
    assert!(!exists(process.pid()));
    process.signal(Signal::SIGTERM).unwrap();

    let process = spawn(launch("/bin/sleep", &["60"], null())).unwrap();
    assert!(exists(process.pid()));
    process.signal(Signal::SIGTERM).unwrap();
    assert_eq!(end(&process).await, Exit::Signal(15));
    assert!(!exists(process.pid()));

    let process = spawn(launch("/bin/sleep", &["60"], null())).unwrap();
    let (first, second) = tokio::join!(end(&process), async {
        process.kill().unwrap();
        end(&process).await
    });
    assert_eq!((first, second), (Exit::Signal(9), Exit::Signal(9)));
}

#[tokio::test]
async fn the_child_is_alone_poor_and_at_home_in_the_root() {
    let process = spawn(launch("/bin/sleep", &["60"], null())).unwrap();
    let pid = Pid::from_raw(process.pid().try_into().unwrap());
    assert_eq!(getsid(Some(pid)).unwrap(), pid);
    assert_eq!(getpgid(Some(pid)).unwrap(), pid);
    process.kill().unwrap();
    end(&process).await;

    let said = printed(
        Identity::Same,
        "pwd; umask; ulimit -c; ulimit -Hc; env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=; \
         grep -E '^(Sig(Blk|Ign)|Cap(Inh|Prm|Eff|Amb)|NoNewPrivs)' /proc/self/status; ls -l /proc/$$/fd/0 | sed 's/.*-> //'",
    )
    .await;
    let zero = "0000000000000000";
    // The shell counts core files in blocks of 512 bytes.
    let want = format!(
        "/\n0077\n0\n0\nSigBlk:\t{zero}\nSigIgn:\t{zero}\n\
         CapInh:\t{zero}\nCapPrm:\t{zero}\nCapEff:\t{zero}\nCapAmb:\t{zero}\nNoNewPrivs:\t1\n/dev/null\n"
    );
    assert_eq!(said, want);
    let limits = printed(Identity::Same, "grep 'core file' /proc/self/limits").await;
    assert_eq!(
        limits.split_ascii_whitespace().collect::<Vec<_>>()[4..6],
        ["1", "1"]
    );
}

#[tokio::test]
async fn descriptors_get_their_numbers_whatever_those_were() {
    // Each one where another one wants to be, and one where the error pipe
    // would be.
    let files: Vec<OwnedFd> = (0..6)
        .map(|number| {
            let (read, write) = pipe();
            File::from(write)
                .write_all(format!("{number}").as_bytes())
                .unwrap();
            read.into()
        })
        .collect();
    let mut numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.rotate_left(1);
    let list: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    // A descriptor of ours that a careless library left open for children.
    let leak = nix::unistd::dup(&files[0]).unwrap();
    let (read, write) = pipe();
    let mut launch = shell(
        &format!(
            "for fd in {}; do cat /proc/$$/fd/$fd; done; ls /proc/$$/fd; :",
            list.join(" ")
        ),
        write,
    );
    launch.fds = files.into_iter().zip(numbers.iter().copied()).collect();
    let process = spawn(launch).unwrap();
    assert_eq!(end(&process).await, Exit::Code(0));
    drop(leak);

    let said = text(read);
    let (contents, open) = said.split_at(6);
    assert_eq!(contents, "012345");
    let mut open: Vec<RawFd> = open.lines().map(|line| line.parse().unwrap()).collect();
    open.retain(|fd| !numbers.contains(fd));
    assert_eq!(open, [0, 1, 2]);
}

#[tokio::test]
async fn numbers_that_cannot_be_given_are_refused() {
    for numbers in [&[2][..], &[5, 6, 5], &[-1]] {
        let mut launch = shell("exit 0", null());
        launch.fds = numbers.iter().map(|&number| (null(), number)).collect();
        let error = spawn(launch).unwrap_err();
        assert!(matches!(error, SpawnError::Number { .. }), "{error}");
    }
    let error = spawn(launch("/bin/echo", &["a\0b"], null())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an argument of `/bin/echo` contains a NUL byte"
    );
}

#[tokio::test]
async fn a_program_that_cannot_be_run_says_why_and_leaves_nothing() {
    let check = |program: &str, want: io::ErrorKind| {
        let error = spawn(launch(program, &[], null())).unwrap_err();
        let SpawnError::Child {
            step: Step::Execute,
            source,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), want);
        assert_eq!(
            error.to_string(),
            format!("cannot execute the program for `{program}`")
        );
    };
    check("/nonexistent/qemu", io::ErrorKind::NotFound);
    check("/dev/null", io::ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn root_becomes_nobody_and_cannot_come_back() {
    let identity = Identity::Drop {
        uid: 65_534,
        gid: 65_533,
    };
    if nix::unistd::geteuid().is_root() {
        let said = printed(
            identity,
            "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status | tr -s '\\t ' ' '",
        )
        .await;
        let zero = "0000000000000000";
        assert_eq!(
            said,
            format!(
                "Uid: 65534 65534 65534 65534\nGid: 65533 65533 65533 65533\nGroups: \nCapInh: {zero}\nCapPrm: {zero}\n\
                 CapEff: {zero}\nCapBnd: {zero}\nCapAmb: {zero}\nNoNewPrivs: 1\n"
            )
        );
    } else {
        let error = spawn(Launch {
            identity,
            ..shell("exit 0", null())
        })
        .unwrap_err();
        assert!(
            matches!(
                error,
                SpawnError::Child {
                    step: Step::Identity,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn only_the_very_same_process_is_adopted() {
    let process = spawn(launch("/bin/sh", &["-c", "read x", "-uuid", UUID], null())).unwrap();
    // `read` ends at once on /dev/null: this one must stay.
    end(&process).await;
    let process = spawn(launch(
        "/bin/sh",
        // It stays without a child, which would carry the same arguments until its exec.
        &["-c", "kill -STOP $$", "-uuid", UUID],
        null(),
    ))
    .unwrap();
    let (pid, start_time) = (process.pid(), process.start_time());

    let other = "6ba7b811-9dad-11d1-80b4-00c04fd430c8";
    assert!(Process::adopt(pid, start_time + 1, UUID).unwrap().is_none());
    assert!(Process::adopt(pid, start_time, other).unwrap().is_none());
    assert!(Process::adopt(0, start_time, UUID).unwrap().is_none());
    assert!(
        Process::adopt(u32::MAX, start_time, UUID)
            .unwrap()
            .is_none()
    );
    let carriers = Carriers::default();
    let found = carriers.find(UUID).unwrap();
    assert_eq!((found.pid(), found.start_time()), (pid, start_time));
    assert!(carriers.find(other).is_none());

    let adopted = Process::adopt(pid, start_time, UUID).unwrap().unwrap();
    adopted.kill().unwrap();
    assert_eq!(end(&process).await, Exit::Signal(9));
    // Reaped by its parent, it is known to others since Linux 6.15.
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    let told = if version >= (6, 15) {
        Exit::Signal(9)
    } else {
        Exit::Unknown
    };
    assert_eq!(end(&adopted).await, told, "{release}");
    adopted.signal(Signal::SIGTERM).unwrap();
    assert!(Process::adopt(pid, start_time, UUID).unwrap().is_none());
}

#[tokio::test]
async fn a_daemon_is_nobodys_zombie_and_has_its_descriptors() {
    // This test program itself is what /proc/self/exe names: it lists no test
    // and ends.
    let (read, write) = pipe();
    let directory = std::env::temp_dir().join(format!("kiln-daemon-{}", std::process::id()));
    let log = File::create_new(&directory).unwrap();
    let pid = spawn_detached(Detached {
        args: ["--list", "no_such_test"].map(OsString::from).into(),
        environment: vec!["RUST_BACKTRACE=0".into()],
        fds: vec![(write, 3)],
        log,
    })
    .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(
        !status.contains(&format!("PPid:\t{}\n", std::process::id())),
        "{status}"
    );
    // Its end closes descriptor 3, the last writer of the pipe.
    assert_eq!(text(read), "");
    let logged = std::fs::read_to_string(&directory).unwrap();
    std::fs::remove_file(&directory).unwrap();
    assert!(logged.contains("0 tests"), "{logged}");
}

#[tokio::test]
async fn what_the_child_makes_is_private() {
    let path = std::env::temp_dir().join(format!("kiln-umask-{}", std::process::id()));
    printed(Identity::Same, &format!("> {}", path.display())).await;
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_companion_is_a_child_in_the_same_group_and_is_killed_with_it() {
    let (read, write) = pipe();
    let (input, output) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let companion = Companion {
        program: "/bin/sh".into(),
        args: ["-c", "cat <&5; exec sleep 60"].map(OsString::from).into(),
        fds: vec![(input, 5)],
        output: write,
        umask: 0o077,
        mount: None,
    };
    let main = launch("/bin/sleep", &["60"], null());
    let (main, companions) = spawn_all(main, vec![companion]).unwrap();
    let [companion] = companions.try_into().unwrap();
    File::from(output).write_all(b"heard").unwrap();
    let mut heard = [0; 5];
    (&read).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"heard");
    let pid = |process: &Process| Pid::from_raw(process.pid().cast_signed());
    assert_eq!(getsid(Some(pid(&companion))).unwrap(), pid(&main));
    assert_eq!(getpgid(Some(pid(&companion))).unwrap(), pid(&main));
    // Where the kernel is older than 6.9, the group is not killed, and swtpm ends by itself.
    main.kill().unwrap();
    assert_eq!(end(&main).await, Exit::Signal(9));
    companion.kill().unwrap();
    // Not `Unknown`: it is our child.
    assert_eq!(end(&companion).await, Exit::Signal(9));
}

#[tokio::test]
async fn without_its_companion_nothing_is_started() {
    let (read, write) = pipe();
    let companion = Companion {
        program: "/nowhere/swtpm".into(),
        args: Vec::new(),
        fds: Vec::new(),
        output: null(),
        umask: 0o077,
        mount: None,
    };
    let main = launch("/bin/sh", &["-c", "exec sleep 60"], write);
    let error = spawn_all(main, vec![companion]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot execute the program for `/nowhere/swtpm`"
    );
    // The other end is closed: the program that was to be beside it is gone.
    assert_eq!(text(read), "");
}
