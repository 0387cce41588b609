//! Programs that try to get out, or to use more than they may.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::*;

fn limits(seconds: u64) -> Limits {
    Limits {
        wall: Duration::from_secs(seconds),
        cpu: Duration::from_secs(seconds),
        ..Limits::default()
    }
}

/// The strongest confinement that the system permits, and the weaker ones that others do.
fn sandboxes() -> Vec<Sandbox> {
    let strongest = Sandbox::new(limits(60)).unwrap();
    let mut all = vec![(strongest.namespaces, strongest.user), (false, strongest.user)];
    if child::is_root() {
        all.extend(
            [true, false].map(|namespaces| (namespaces && strongest.namespaces, Some((NOBODY, false)))),
        );
    }
    all.sort_unstable();
    all.dedup();
    let made = all.into_iter().map(|(namespaces, user)| Sandbox {
        python: strongest.python.clone(),
        limits: strongest.limits,
        namespaces,
        user,
    });
    made.inspect(|sandbox| eprintln!("{}", sandbox.describe()))
        .collect()
}

fn run(sandbox: &Sandbox, program: &str) -> Ended {
    let ended = sandbox.run(program, "").unwrap();
    eprintln!("{program}\n  -> {ended:?}");
    ended
}

fn succeeds(sandbox: &Sandbox, program: &str) -> String {
    let ended = run(sandbox, program);
    assert_eq!((ended.code, ended.timed_out), (Some(0), false), "{}", ended.error);
    ended.stdout
}

/// Processes whose command line holds a text.
fn processes_with(text: &str) -> usize {
    let found = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    });
    found.count()
}

#[test]
fn a_program_runs() {
    for sandbox in sandboxes() {
        let ended = sandbox.run("print(input()[::-1])", "abc\n").unwrap();
        assert_eq!(
            ended,
            Ended {
                code: Some(0),
                timed_out: false,
                stdout: "cba\n".into(),
                error: String::new()
            }
        );
        assert_eq!(run(&sandbox, "import sys; sys.exit(3)").code, Some(3));
        assert_eq!(run(&sandbox, "raise ValueError('no')").error, "ValueError: no");
        let aborted = run(&sandbox, "import os; os.abort()");
        assert_eq!((aborted.code, aborted.timed_out), (None, false));
        // What ordinary programs use.
        let ordinary = "import asyncio, collections, math, re, subprocess, threading\nasyncio.run(asyncio.sleep(0))\n\
        t = threading.Thread(target=print, args=(1,)); t.start(); t.join()\n\
        print(subprocess.run(['true']).returncode)";
        assert_eq!(succeeds(&sandbox, ordinary), "1\n0\n");
    }
}

#[test]
fn its_directory_and_environment_are_its_own() {
    for sandbox in sandboxes() {
        let program = "import os\nprint(os.listdir('.'), sorted(os.environ))\nopen('a', 'w').write('x')\nprint(os.listdir('.'))";
        let first = succeeds(&sandbox, program);
        assert!(
            first.starts_with("[] ['HOME', 'LANG', 'PATH', 'TMPDIR'"),
            "{first}"
        );
        assert!(first.ends_with("['a']\n"), "{first}");
        assert_eq!(succeeds(&sandbox, program), first);
        if child::is_root() {
            let user: u32 = succeeds(&sandbox, "import os; print(os.getuid())")
                .trim()
                .parse()
                .unwrap();
            assert!(user >= NOBODY);
            assert_eq!(succeeds(&sandbox, "import os; print(os.getgroups())"), "[]\n");
        }
    }
}

#[test]
fn an_endless_loop_ends() {
    for mut sandbox in sandboxes() {
        sandbox.limits.wall = Duration::from_secs(1);
        for program in ["while True: pass", "import time; time.sleep(1000)"] {
            let ended = run(&sandbox, program);
            assert_eq!((ended.code, ended.timed_out), (None, true));
        }
        // CPU time by itself.
        sandbox.limits.cpu = Duration::from_secs(1);
        sandbox.limits.wall = Duration::from_secs(100);
        let ended = run(&sandbox, "while True: pass");
        assert_eq!((ended.code, ended.timed_out), (None, false));
    }
}

#[test]
fn a_fork_bomb_is_bounded_and_killed_whole() {
    for mut sandbox in sandboxes() {
        sandbox.limits.wall = Duration::from_secs(2);
        let mark = format!("mark{}", std::process::id());
        // Every process goes on, and each has the mark in its command line.
        let program = format!(
            "import os, sys\nif len(sys.argv) == 1: os.execv(sys.executable, [sys.executable, '-I', __file__, '{mark}'])\n\
         while True:\n  try: os.fork()\n  except OSError: pass"
        );
        let ended = run(&sandbox, &program);
        assert!(ended.timed_out);
        // Killed processes take a moment to go.
        let deadline = Instant::now() + Duration::from_secs(30);
        while processes_with(&mark) > 0 {
            assert!(
                Instant::now() < deadline,
                "{} processes are left",
                processes_with(&mark)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // How many there can be, and that a leader that ends takes the others along.
        let count = "import os, time\nn = 1\nfor i in range(100):\n  try:\n    if os.fork() == 0: time.sleep(1000)\n    n += 1\n  \
        except OSError: break\nprint(n, flush=True)";
        let count: u64 = succeeds(&sandbox, count).trim().parse().unwrap();
        assert!(
            (2..=sandbox.limits.processes).contains(&count) || !matches!(sandbox.user, Some((_, true))),
            "{count}"
        );
    }
}

#[test]
fn nothing_leaves_the_process_group() {
    for sandbox in sandboxes() {
        for call in [
            "os.setsid()",
            "os.setpgid(0, 0)",
            "os.kill(os.getppid(), 9)",
            "os.kill(-1, 9)",
        ] {
            let program = format!(
                "import os\npid = os.fork()\nif pid == 0:\n  try: {call}\n  except PermissionError: os._exit(7)\n  os._exit(1)\n\
             print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
            );
            assert_eq!(succeeds(&sandbox, &program), "7\n", "{call}");
        }
    }
}

#[test]
fn a_memory_hog_gets_none() {
    for sandbox in sandboxes() {
        let ended = run(&sandbox, "x = []\nwhile True: x.append(bytearray(16 << 20))");
        assert_eq!((ended.code, ended.timed_out), (Some(1), false));
        assert!(ended.error.contains("MemoryError"), "{}", ended.error);
    }
}

#[test]
fn a_file_filler_is_stopped() {
    for sandbox in sandboxes() {
        let one = "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()";
        let ended = run(&sandbox, one);
        assert_eq!((ended.code, ended.timed_out), (Some(1), false));
        assert!(
            ended.error.contains("File too large") || ended.error.contains("No space left"),
            "{}",
            ended.error
        );
        // Printing counts too.
        let printed = run(
            &sandbox,
            "import sys\nwhile True: sys.stdout.write('x' * (1 << 20))",
        );
        assert!(printed.code != Some(0) && !printed.timed_out);
        assert!(printed.stdout.len() as u64 <= sandbox.limits.file);
        if sandbox.namespaces {
            let many = "n = 0\nwhile True:\n  n += 1\n  open(str(n), 'wb').write(bytes(1 << 20))";
            let ended = run(&sandbox, many);
            assert!(ended.error.contains("No space left"), "{}", ended.error);
            for folder in ["/tmp", "/var/tmp", "/dev/shm", "/"] {
                let ended = run(&sandbox, &format!("open('{folder}/rrpc-escape', 'w')"));
                assert!(
                    ended.error.contains("Read-only") || ended.error.contains("Permission"),
                    "{}",
                    ended.error
                );
                assert!(!Path::new(folder).join("rrpc-escape").exists());
            }
        }
    }
}

#[test]
fn there_is_no_network() {
    for sandbox in sandboxes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = run(
            &sandbox,
            &format!("import socket; socket.create_connection(('127.0.0.1', {port}), 5); print('reached')"),
        );
        assert_eq!(ended.code, Some(1));
        assert!(ended.error.contains("Operation not permitted"), "{}", ended.error);
        for family in ["AF_UNIX", "AF_INET6", "AF_NETLINK"] {
            let ended = run(
                &sandbox,
                &format!("import socket; socket.socket(socket.{family})"),
            );
            assert!(ended.error.contains("not permitted"), "{}", ended.error);
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
        if sandbox.namespaces {
            let routes = succeeds(&sandbox, "print(open('/proc/net/route').read().count('\\n') > 1)");
            assert_eq!(routes, "False\n");
        }
    }
}

/// The same tests under a user that is not root, with namespaces of its own.
#[test]
fn another_user_is_confined_as_well() {
    if !child::is_root() {
        return;
    }
    let folder = Folder::new().unwrap();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.0.join("tests");
    // By another process: what this one writes, a child that another test is just starting holds open as well, and a
    // program that is open for writing cannot be started.
    let copied = Command::new("cp")
        .arg(std::env::current_exe().unwrap())
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(&copy)
        .arg("sandbox::tests")
        .current_dir("/")
        .env("PATH", "/usr/bin:/bin")
        .uid(1_999_999_999)
        .gid(1_999_999_999)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("9 passed"), "{text}");
}
