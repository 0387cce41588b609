//! What happens between fork and exec, and how the process group ends.

#![allow(unsafe_code)] // system calls that the standard library has no words for

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::FromRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Limits;

pub(super) fn is_root() -> bool {
    // SAFETY: has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// A file without a name, in memory.
pub(super) fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string; a returned descriptor is new and ours alone.
    unsafe {
        let fd = libc::memfd_create(c"reasoning-rpc".as_ptr(), libc::MFD_CLOEXEC);
        check(fd)?;
        Ok(File::from_raw_fd(fd))
    }
}

/// Makes a folder from a path that ends in XXXXXX, which are replaced.
pub(super) fn make_temporary(path: &mut Vec<u8>) -> io::Result<()> {
    path.push(0);
    // SAFETY: `path` is a writable C string, whose length mkdtemp does not change.
    let made = unsafe { libc::mkdtemp(path.as_mut_ptr().cast()) };
    path.pop();
    match made.is_null() {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What a child does to itself, prepared before the fork: nothing here allocates afterwards.
pub(super) struct Confinement {
    work: CString,
    /// Options of the file system in memory.
    tmpfs: CString,
    namespaces: bool,
    /// Of the calling user, for a user namespace: contents of uid_map and gid_map.
    maps: [CString; 2],
    user: Option<u32>,
    limits: [(libc::__rlimit_resource_t, u64); 6],
    filter: Vec<libc::sock_filter>,
    /// Where the filter compares with the child's own process id.
    own_pid_at: usize,
}

impl Confinement {
    pub(super) fn new(
        work: CString,
        limits: &Limits,
        namespaces: bool,
        user: Option<u32>,
    ) -> io::Result<Self> {
        // SAFETY: neither has preconditions.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let owner = user.unwrap_or(uid);
        // The limit counts what the user runs already.
        let processes = limits.processes + threads_of(owner)?;
        let (filter, own_pid_at) = filter();
        Ok(Self {
            work,
            tmpfs: CString::new(format!(
                "mode=700,uid={owner},gid={},size={},nr_inodes=10000",
                user.unwrap_or(gid),
                limits.file
            ))?,
            namespaces,
            maps: [
                CString::new(format!("{uid} {uid} 1"))?,
                CString::new(format!("{gid} {gid} 1"))?,
            ],
            user,
            limits: [
                (libc::RLIMIT_CPU, limits.cpu.as_secs().max(1)),
                (libc::RLIMIT_AS, limits.memory),
                (libc::RLIMIT_NPROC, processes),
                (libc::RLIMIT_FSIZE, limits.file),
                (libc::RLIMIT_NOFILE, 64),
                (libc::RLIMIT_CORE, 0),
            ],
            filter,
            own_pid_at,
        })
    }

    /// In the child. Makes no call that is not async-signal-safe.
    fn apply(&mut self) -> io::Result<()> {
        // SAFETY: plain system calls on memory that `self` owns: the strings are C strings, the filter's
        // length is its own, and the structs are initialised.
        unsafe {
            check(libc::setsid())?;
            if self.namespaces {
                self.leave_namespaces()?;
            }
            check(libc::chdir(self.work.as_ptr()))?;
            for (resource, limit) in self.limits {
                let limit = libc::rlimit {
                    rlim_cur: limit,
                    rlim_max: limit,
                };
                check(libc::setrlimit(resource, &limit))?;
            }
            if let Some(user) = self.user {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setresgid(user, user, user))?;
                check(libc::setresuid(user, user, user))?;
            }
            // Not to outlive the thread that waits for it.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            self.filter[self.own_pid_at].k = libc::getpid() as u32;
            let program = libc::sock_fprog {
                len: self.filter.len() as u16,
                filter: self.filter.as_mut_ptr(),
            };
            check(libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &program,
            ))
        }
    }

    /// # Safety
    /// Between fork and exec.
    unsafe fn leave_namespaces(&self) -> io::Result<()> {
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC;
        if self.user.is_none() {
            flags |= libc::CLONE_NEWUSER;
        }
        let none = c"none".as_ptr();
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_RDONLY,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        };
        // SAFETY: system calls on C strings and an initialised struct of the size that is named.
        unsafe {
            check(libc::unshare(flags))?;
            if self.user.is_none() {
                write_file(c"/proc/self/setgroups", c"deny")?;
                write_file(c"/proc/self/uid_map", &self.maps[0])?;
                write_file(c"/proc/self/gid_map", &self.maps[1])?;
            }
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(libc::mount(
                none,
                c"/".as_ptr(),
                std::ptr::null(),
                private,
                std::ptr::null(),
            ))?;
            let made = libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                c"/".as_ptr(),
                libc::AT_RECURSIVE,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            );
            check(made as libc::c_int)?;
            check(libc::mount(
                c"tmpfs".as_ptr(),
                self.work.as_ptr(),
                c"tmpfs".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                self.tmpfs.as_ptr().cast(),
            ))
        }
    }
}

/// # Safety
/// Between fork and exec.
unsafe fn write_file(path: &std::ffi::CStr, text: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: the path is a C string, the buffer has the length that is named, the descriptor is ours.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        let written = libc::write(fd, text.as_ptr().cast(), text.to_bytes().len());
        let result = check(written as libc::c_int);
        libc::close(fd);
        result
    }
}

/// Threads that run under a user id.
fn threads_of(uid: u32) -> io::Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")? {
        // Processes come and go.
        let Ok(entry) = entry else { continue };
        let owned = std::os::unix::fs::MetadataExt::uid;
        if entry.metadata().is_ok_and(|data| owned(&data) == uid) {
            let tasks = std::fs::read_dir(entry.path().join("task"));
            count += tasks.map_or(0, |tasks| tasks.count() as u64);
        }
    }
    Ok(count)
}

/// The system call filter, in the machine language of classic BPF, and the place of the child's process id in it.
fn filter() -> (Vec<libc::sock_filter>, usize) {
    const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
    const X32: u32 = 0x4000_0000;
    const DENIED: [libc::c_long; 38] = [
        // The network, and another way to it.
        libc::SYS_socket,
        libc::SYS_io_uring_setup,
        // Leaving the process group, or signalling others.
        libc::SYS_setsid,
        libc::SYS_setpgid,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
        // Others' memory.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        // Memory and files that the limits do not count.
        libc::SYS_memfd_create,
        libc::SYS_memfd_secret,
        libc::SYS_shmget,
        libc::SYS_msgget,
        // Other views of the system.
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_by_handle_at,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_personality,
    ];
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |offset: usize| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
    let equals = |k: u32, jt: u8, jf: u8| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let give = |result: u32| statement(libc::BPF_RET | libc::BPF_K, result);
    let denied = give(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);

    let mut filter = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        equals(AUDIT_ARCH_X86_64, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(offset_of!(libc::seccomp_data, nr)),
        // x32 has numbers of its own.
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32, 0, 1),
        denied,
    ];
    for call in DENIED {
        filter.push(equals(call as u32, 0, 1));
        filter.push(denied);
    }
    // A signal to a thread of the process itself is how abort() works.
    filter.push(equals(libc::SYS_tgkill as u32, 0, 3));
    filter.push(load(offset_of!(libc::seccomp_data, args)));
    let own_pid_at = filter.len();
    filter.push(equals(0, 1, 0));
    filter.push(denied);
    filter.push(give(libc::SECCOMP_RET_ALLOW));
    (filter, own_pid_at)
}

/// A process that leads a group. Dropping it kills the group.
pub(super) struct Leader {
    child: Child,
    reaped: bool,
}

/// Starts Python on a script, with standard input, output and errors as given.
pub(super) fn start(
    python: &Path,
    script: &Path,
    mut confinement: Confinement,
    streams: [File; 3],
) -> io::Result<Leader> {
    let [stdin, stdout, stderr] = streams;
    let mut command = Command::new(python);
    command
        .args(["-I", "-B"])
        .arg(script)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", script.with_file_name("work"))
        .env("TMPDIR", script.with_file_name("work"))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr));
    // SAFETY: `apply` makes nothing but async-signal-safe calls, on memory that was prepared before the fork.
    unsafe {
        command.pre_exec(move || confinement.apply());
    }
    Ok(Leader {
        child: command.spawn()?,
        reaped: false,
    })
}

impl Leader {
    /// Whether the leader has ended. It is not reaped, so that its id stays the group's.
    pub(super) fn has_ended(&self) -> io::Result<bool> {
        // SAFETY: zeros are a valid siginfo_t, which outlives the call.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
            check(libc::waitid(libc::P_PID, self.child.id(), &mut info, flags))?;
            Ok(info.si_pid() != 0)
        }
    }

    /// Kills all of the group and gives the leader's exit code, if it had ended by itself.
    pub(super) fn kill_group_and_wait(&mut self) -> io::Result<Option<i32>> {
        // SAFETY: the leader is not reaped: the group of its id is its own.
        unsafe { libc::killpg(self.child.id() as libc::pid_t, libc::SIGKILL) };
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(match status.signal() {
            Some(_) => None,
            None => status.code(),
        })
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.kill_group_and_wait();
        }
    }
}
