//! Memory that every token is read from: an anonymous mapping that asks for huge pages.

#![allow(unsafe_code)] // mmap

use std::io;
use std::ptr::{self, NonNull};

/// A huge page's bytes. With pages of 4 KB a core that reads all of a cache or all weights waits for address translation.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A mapping of some bytes, zeros at first, at a huge page's start. Address space only, until it is written.
pub(crate) struct HugePages {
    base: NonNull<u8>,
    mapping: NonNull<u8>,
    mapped: usize,
    len: usize,
}

impl HugePages {
    /// # Errors
    /// When the address space cannot be had. That the kernel has no huge pages is no error.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let mapped = bytes
            .checked_add(HUGE_PAGE)
            .filter(|&mapped| isize::try_from(mapped).is_ok())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping: NonNull<u8> = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        // SAFETY: the mapping has a huge page more than `bytes`, so they fit behind the offset.
        let base = unsafe { mapping.add(mapping.align_offset(HUGE_PAGE)) };
        // SAFETY: a range inside the mapping.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Self {
            base,
            mapping,
            mapped,
            len: bytes,
        })
    }

    /// The address of a byte; of what lies behind the end, that of the end.
    pub(crate) fn at(&self, byte: usize) -> NonNull<u8> {
        debug_assert!(byte <= self.len);
        // SAFETY: inside the mapping or at its end.
        unsafe { self.base.add(byte.min(self.len)) }
    }

    /// All of it.
    #[cfg(test)]
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: as below; the tests that call it write nothing meanwhile.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// All of it.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `len` mapped bytes, borrowed alone; a mapping begins as zeros.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; whoever has addresses in it keeps it alive.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

// SAFETY: it owns the mapping, and does nothing with what lies there.
unsafe impl Send for HugePages {}
// SAFETY: as above.
unsafe impl Sync for HugePages {}
