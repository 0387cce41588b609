//! Runs programs that a model wrote: in a process of their own, with nothing to reach and little to use.
//!
//! What holds for every program: no sockets, signals to others, sessions, process groups, mounts or traces (a system
//! call filter); limits on CPU time, memory, processes, file sizes, open files and wall-clock time; an environment
//! and a working directory of its own, both empty; and when its time is over, or it ended, its whole process group
//! is killed, which nothing in it can leave. If this process is killed itself, the program ends with it, but not
//! processes that the program had started: they have their CPU time still, and one that sleeps may stay.
//!
//! Where the system permits namespaces (for root, and where users may make their own), it has no network devices
//! either, sees all files read-only, and its directory is a small file system in memory that goes with it. Started
//! by root, it runs under a user id that nobody has. Started by another user it runs as that user: without
//! namespaces it could then write to that user's files. [`Sandbox::describe`] says what is the case. Where there is
//! no system call filter, programs are refused.

mod child;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use child::Confinement;

/// What a program may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Wall-clock time.
    pub wall: Duration,
    /// CPU time of each of its processes.
    pub cpu: Duration,
    /// Bytes of address space of each of its processes.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes of a file, of what it prints, and of its directory.
    pub file: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(10),
            cpu: Duration::from_secs(10),
            memory: 512 << 20,
            processes: 8,
            file: 16 << 20,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Whether its time was over.
    pub timed_out: bool,
    /// What it printed on standard output: no more than [`Limits::file`].
    pub stdout: String,
    /// The last line of its errors.
    pub error: String,
}

/// Where programs run. May be used from any thread; where all programs have one user id, they run one at a time.
pub struct Sandbox {
    python: PathBuf,
    limits: Limits,
    namespaces: bool,
    /// For root: the first user id, and whether each run has one of its own.
    user: Option<(u32, bool)>,
}

/// Runs of every sandbox of this process, which take the user ids in turn: two at once must not share one, because
/// the limit on processes counts by user.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// Held by a run whose processes the system counts together with those of other runs: a program that starts all it
/// can would leave none to the others.
static COUNTED_TOGETHER: Mutex<()> = Mutex::new(());

/// A user that no file belongs to.
const NOBODY: u32 = 65534;

impl Sandbox {
    /// Finds the first `python3` on PATH that runs in the strongest confinement that the system permits.
    ///
    /// # Errors
    /// [`Error::Sandbox`] if there is none, with what was tried last.
    pub fn new(limits: Limits) -> Result<Self> {
        let root = child::is_root();
        let users: &[Option<(u32, bool)>] = match root {
            true => &[
                Some((1_000_000_000 + std::process::id() % 1_000_000 * 1000, true)),
                Some((NOBODY, false)),
            ],
            false => &[None],
        };
        let mut last = String::from("expected python3 on PATH, found none");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let pythons: Vec<PathBuf> = std::env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join("python3"))
            .filter(|python| python.is_file())
            .collect();
        for namespaces in [true, false] {
            for &user in users {
                for python in &pythons {
                    let sandbox = Self {
                        python: python.clone(),
                        limits,
                        namespaces,
                        user,
                    };
                    match sandbox.run("print(6 * 7)", "") {
                        Ok(ended) if ended.stdout == "42\n" => return Ok(sandbox),
                        Ok(ended) => last = format!("{}: {}", python.display(), ended.error),
                        Err(error) => last = format!("{}: {error}", python.display()),
                    }
                }
            }
        }
        Err(Error::Sandbox(format!(
            "expected a python3 that runs confined, found: {last}"
        )))
    }

    /// What programs may use here.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What confines programs here, in words.
    pub fn describe(&self) -> String {
        let user = match self.user {
            Some((_, true)) => "a user id of its own",
            Some((id, false)) if id == NOBODY => "the user nobody",
            Some(_) => "another user",
            None => "the calling user",
        };
        let files = match (self.namespaces, self.user.is_some()) {
            (true, _) => "no network and read-only files by namespaces; no sockets by a system call filter",
            (false, true) => "no sockets by a system call filter (namespaces are not permitted here)",
            (false, false) => {
                "no sockets by a system call filter; namespaces are not permitted here, so that programs can \
                 write to the calling user's files"
            }
        };
        format!("{} as {user}; {files}", self.python.display())
    }

    /// Runs a program in Python, with `input` on its standard input.
    ///
    /// # Errors
    /// [`Error::Sandbox`] if it could not be started.
    pub fn run(&self, program: &str, input: &str) -> Result<Ended> {
        self.try_run(program, input)
            .map_err(|error| Error::Sandbox(error.to_string()))
    }

    fn try_run(&self, program: &str, input: &str) -> io::Result<Ended> {
        let folder = Folder::new()?;
        let work = folder.0.join("work");
        fs::create_dir(&work)?;
        let script = folder.0.join("program.py");
        fs::write(&script, program)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644))?;
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755))?;
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let user = self
            .user
            .map(|(first, own)| first + if own { run % 1000 } else { 0 });
        if let Some(user) = user {
            std::os::unix::fs::chown(&work, Some(user), Some(user))?;
        }
        let mut stdin = child::memory_file()?;
        stdin.write_all(input.as_bytes())?;
        io::Seek::rewind(&mut stdin)?;
        let (stdout, stderr) = (child::memory_file()?, child::memory_file()?);

        let apart = match self.user {
            Some((_, own)) => own,
            // A user namespace has a count of its own.
            None => self.namespaces,
        };
        let _one_at_a_time =
            (!apart).then(|| COUNTED_TOGETHER.lock().unwrap_or_else(PoisonError::into_inner));
        let confinement = Confinement::new(
            CString::new(work.as_os_str().as_bytes())?,
            &self.limits,
            self.namespaces,
            user,
        )?;
        let mut process = child::start(
            &self.python,
            &script,
            confinement,
            [stdin, stdout.try_clone()?, stderr.try_clone()?],
        )?;
        let deadline = Instant::now() + self.limits.wall;
        let mut pause = Duration::from_millis(1);
        let timed_out = loop {
            if process.has_ended()? {
                break false;
            }
            if Instant::now() >= deadline {
                break true;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let code = process.kill_group_and_wait()?;
        let errors = printed(&stderr, self.limits.file)?;
        let error = errors.lines().rev().find(|line| !line.trim().is_empty());
        Ok(Ended {
            code: code.filter(|_| !timed_out),
            timed_out,
            stdout: printed(&stdout, self.limits.file)?,
            error: error.unwrap_or_default().chars().take(300).collect(),
        })
    }
}

fn printed(file: &File, most: u64) -> io::Result<String> {
    let length = file.metadata()?.len().min(most);
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A folder that is removed with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let mut template = std::env::temp_dir()
            .join("reasoning-rpc-XXXXXX")
            .into_os_string()
            .into_encoded_bytes();
        child::make_temporary(&mut template)?;
        Ok(Self(
            Path::new(std::ffi::OsStr::from_bytes(&template)).to_path_buf(),
        ))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
