//! An eventfd(2): how an event loop waits for an answer.

#![allow(unsafe_code)] // a system call that std does not have

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::error::{Error, Result};

/// Readable between `set` and `clear`.
#[derive(Debug)]
pub(super) struct EventFd {
    file: File,
    set: bool,
}

impl EventFd {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return Err(Error::File(format!("no eventfd for an answer: {error}")));
        }
        // SAFETY: the call has just opened it, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            file: fd.into(),
            set: false,
        })
    }

    pub(super) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Makes it readable, or not readable. Neither can fail: its counter is 0 or 1.
    pub(super) fn put(&mut self, readable: bool) {
        if readable && !self.set {
            let _ = self.file.write(&1u64.to_ne_bytes());
        } else if !readable && self.set {
            let _ = self.file.read(&mut [0; 8]);
        }
        self.set = readable;
    }
}
