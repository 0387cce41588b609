//! Finding and loading libonnxruntime, once per process.

#![allow(unsafe_code)] // dladdr, getauxval and setenv

use std::ffi::{CStr, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;

use crate::error::{Error, Result, panic_text};

/// The environment variable that names libonnxruntime; ignored in a set-user-id program.
pub const LIBRARY_VARIABLE: &str = "RRPC_ONNXRUNTIME";

const FILE_NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// ONNX Runtime's official builds report to their maker from the moment that they are loaded, unless this
/// variable is set before. A host that links a library did not ask for that. It is set before `main`, where
/// no other thread reads the environment, and what the host has set stays.
#[used]
#[unsafe(link_section = ".init_array")]
static NO_TELEMETRY: extern "C" fn() = {
    extern "C" fn no_telemetry() {
        // SAFETY: both strings end with a NUL; constructors run before `main`, or while `dlopen` loads us.
        unsafe { libc::setenv(c"ORT_DISABLE_TELEMETRY".as_ptr(), c"1".as_ptr(), 0) };
    }
    no_telemetry
};

struct Loaded {
    path: PathBuf,
    environment: Environment,
}

/// Loads ONNX Runtime: from `path` if given, else from the environment variable
/// [`LIBRARY_VARIABLE`] (unless the program is set-user-id), else from beside this library or
/// program. A process has one ONNX Runtime: with no `path`, one that is loaded already serves.
///
/// # Errors
/// [`Error::Runtime`]: nothing was found, what was found is not ONNX Runtime or is too old, or
/// another file is loaded already.
pub fn load(path: Option<&Path>) -> Result<Environment> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(loaded), None) = (&*loaded, path) {
        return Ok(loaded.environment.clone());
    }
    let wanted = find(path)?;
    let wanted = std::fs::canonicalize(&wanted).map_err(|error| {
        Error::Runtime(format!(
            "expected its library at {}, found none: {error}",
            wanted.display()
        ))
    })?;
    if let Some(loaded) = &*loaded {
        if loaded.path == wanted {
            return Ok(loaded.environment.clone());
        }
        return Err(Error::Runtime(format!(
            "a process has one library: expected {}, which is loaded, found {}",
            loaded.path.display(),
            wanted.display()
        )));
    }
    // ONNX Runtime logs to stderr unless it is given a logger; a library is silent.
    let silent: ort::logging::LoggerFunction = Arc::new(|_, _, _, _, _| {});
    // A library that answers GetApi with NULL makes `ort` panic.
    let environment = catch_unwind(AssertUnwindSafe(|| -> Result<Environment> {
        let environment = ort::init_from(&wanted)
            .map_err(|error| Error::Runtime(format!("{}: {}", wanted.display(), describe(&error))))?
            .with_name("reasoning-rpc")
            .with_telemetry(false)
            .with_logger(silent)
            .build()?;
        // With a logger `ort` asks for every message, each of which is formatted.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        Ok(environment)
    }))
    .unwrap_or_else(|payload| {
        let text = panic_text(&*payload);
        Err(Error::Runtime(format!(
            "{}: expected ONNX Runtime, found {text}",
            wanted.display()
        )))
    })?;
    *loaded = Some(Loaded {
        path: wanted,
        environment: environment.clone(),
    });
    Ok(environment)
}

fn describe(error: &ort::LoadDynamicError) -> String {
    match error {
        // Its own text ends before the loader's reason.
        ort::LoadDynamicError::Dlopen { error, .. } => {
            let reason = std::error::Error::source(error).map(ToString::to_string);
            reason.unwrap_or_else(|| error.to_string())
        }
        other => other.to_string(),
    }
}

fn find(path: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = path {
        return Ok(path.to_path_buf());
    }
    if !is_set_user_id()
        && let Some(value) = std::env::var_os(LIBRARY_VARIABLE)
        && !value.is_empty()
    {
        return Ok(PathBuf::from(value));
    }
    let home = own_file()
        .and_then(|file| file.parent().map(Path::to_path_buf))
        .ok_or_else(|| Error::Runtime("where this library lies cannot be told; name it".into()))?;
    // Beside the library; for a program in PREFIX/bin, in PREFIX/lib.
    let folders = [home.clone(), home.join("../lib"), home.join("reasoning-rpc")];
    folders
        .iter()
        .flat_map(|folder| FILE_NAMES.iter().map(move |name| folder.join(name)))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            Error::Runtime(format!(
                "expected {} in {}, in the variable {LIBRARY_VARIABLE} or in the options, found none",
                FILE_NAMES[0],
                home.display()
            ))
        })
}

/// The file that this code was loaded from: the shared library, or the program.
fn own_file() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr fills `info` when it returns non-zero; the address is one of this code.
    let found = unsafe { libc::dladdr(own_file as *const c_void, info.as_mut_ptr()) };
    if found == 0 {
        return None;
    }
    // SAFETY: dladdr returned non-zero, so it filled the struct; dli_fname is a C string that lives
    // as long as the object is loaded.
    let name = unsafe {
        let info = info.assume_init();
        if info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
    // A program's own name may be relative to a folder that is no longer the current one.
    std::fs::canonicalize(path)
        .ok()
        .or_else(|| std::env::current_exe().ok())
}

fn is_set_user_id() -> bool {
    // SAFETY: getauxval has no preconditions.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
