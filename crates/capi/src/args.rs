//! Arguments: pointers become slices, texts and flags, or errors that name the argument.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::slice;

use crate::error::{Failure, RRPC_ERROR_BUFFER_TOO_SMALL};
use crate::sequence::RRPC_NUL_TERMINATED;

/// A text longer than this is a mistake: 256 MiB.
const LONGEST_TEXT: usize = 256 << 20;

/// A slice of the caller's.
///
/// # Safety
/// `data` is NULL or points to `count` values, unless `count` is above `most`.
pub(crate) unsafe fn items<'a, T>(
    argument: &str,
    data: *const T,
    count: usize,
    most: usize,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failure::null(argument));
    }
    if count > most {
        return Err(Failure::argument(format!(
            "{argument}: expected at most {most} items, found {count}"
        )));
    }
    if !data.is_aligned() {
        return Err(Failure::argument(format!(
            "{argument}: expected an address that is a multiple of {}, found {:#x}",
            align_of::<T>(),
            data.addr()
        )));
    }
    // SAFETY: not NULL, aligned, `count` values by the caller's promise; every `most` is far below the
    // isize::MAX bytes that a slice may have.
    Ok(unsafe { slice::from_raw_parts(data, count) })
}

/// A slice of the caller's that is written.
///
/// # Safety
/// As [`items`], and nothing else reads or writes the values while the slice is used.
pub(crate) unsafe fn items_mut<'a, T>(
    argument: &str,
    data: *mut T,
    count: usize,
    most: usize,
) -> Result<&'a mut [T], Failure> {
    // SAFETY: the caller's promise. The check of the address and the count is the whole use of the result.
    if unsafe { items(argument, data.cast_const(), count, most) }?.is_empty() {
        return Ok(&mut []);
    }
    // SAFETY: `items` found it not NULL, aligned and not too long; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts_mut(data, count) })
}

/// A field named reserved.
pub(crate) fn zero(argument: &str, value: u32) -> Result<(), Failure> {
    match value {
        0 => Ok(()),
        _ => Err(Failure::argument(format!(
            "{argument}: expected 0, found {value}"
        ))),
    }
}

/// A text of the caller's, checked to be UTF-8.
///
/// # Safety
/// `data` is NULL or points to `len` bytes, or to a NUL-terminated string if `len` is
/// [`RRPC_NUL_TERMINATED`].
pub(crate) unsafe fn text<'a>(argument: &str, data: *const c_char, len: usize) -> Result<&'a str, Failure> {
    let bytes = if len == RRPC_NUL_TERMINATED {
        // SAFETY: the caller's promise.
        unsafe { c_string(argument, data) }?.to_bytes()
    } else {
        // SAFETY: the caller's promise.
        unsafe { items(argument, data.cast::<u8>(), len, LONGEST_TEXT) }?
    };
    std::str::from_utf8(bytes).map_err(|error| {
        Failure::argument(format!(
            "{argument}: expected UTF-8, found other bytes from byte {} on",
            error.valid_up_to()
        ))
    })
}

/// A copy of a text. Its size is the caller's choice, so that there may be no memory for it.
pub(crate) fn owned(text: &str) -> Result<String, Failure> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len())
        .map_err(|_| Failure::out_of_memory())?;
    copy.push_str(text);
    Ok(copy)
}

/// A path of the caller's.
///
/// # Safety
/// `data` is NULL or points to a NUL-terminated string.
pub(crate) unsafe fn path(argument: &str, data: *const c_char) -> Result<PathBuf, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { c_string(argument, data) }?.to_bytes();
    if bytes.is_empty() {
        return Err(Failure::argument(format!(
            "{argument}: expected a path, found an empty string"
        )));
    }
    Ok(PathBuf::from(OsStr::from_bytes(bytes)))
}

/// # Safety
/// `data` is NULL or points to a NUL-terminated string.
unsafe fn c_string<'a>(argument: &str, data: *const c_char) -> Result<&'a CStr, Failure> {
    if data.is_null() {
        return Err(Failure::null(argument));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(data) })
}

/// 0 or 1.
pub(crate) fn flag(argument: &str, value: u32) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::argument(format!(
            "{argument}: expected 0 or 1, found {value}"
        ))),
    }
}

/// A number that names one of several things.
pub(crate) fn choice<T: Copy>(argument: &str, value: u32, choices: &[(u32, T)]) -> Result<T, Failure> {
    choices
        .iter()
        .find(|(number, _)| *number == value)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| {
            let numbers: Vec<String> = choices.iter().map(|(number, _)| number.to_string()).collect();
            Failure::argument(format!(
                "{argument}: expected one of {}, found {value}",
                numbers.join(", ")
            ))
        })
}

/// Sets an output.
///
/// # Safety
/// `to` is NULL or points to a writable value.
pub(crate) unsafe fn set<T>(argument: &str, to: *mut T, value: T) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(argument));
    }
    // SAFETY: the caller's promise; no alignment is needed.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Copies values out: their number to `count`, and them to `out`. With a NULL `out` the number is all
/// that is asked for.
///
/// # Safety
/// `out` is NULL or points to `capacity` writable values; `count` is NULL or points to a writable
/// value.
pub(crate) unsafe fn copy_out<T: Copy>(
    values: &[T],
    out: *mut T,
    capacity: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { set("count", count, values.len()) }?;
    if out.is_null() {
        return match capacity {
            0 => Ok(()),
            _ => Err(Failure::null("out")),
        };
    }
    if values.len() > capacity {
        return Err(Failure::new(
            RRPC_ERROR_BUFFER_TOO_SMALL,
            format!(
                "out: expected room for {}, found room for {capacity}",
                values.len()
            ),
        ));
    }
    // SAFETY: `out` has room for `capacity` values, at least as many as there are; copied as bytes, so
    // that no alignment is needed.
    unsafe {
        out.cast::<u8>()
            .copy_from_nonoverlapping(values.as_ptr().cast(), size_of_val(values));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn texts_are_checked() {
        // SAFETY: the pointers are those of the strings, with their lengths.
        unsafe {
            assert_eq!(text("t", c"abc".as_ptr(), 2).unwrap(), "ab");
            assert_eq!(text("t", c"abc".as_ptr(), RRPC_NUL_TERMINATED).unwrap(), "abc");
            assert_eq!(text("t", ptr::null(), 0).unwrap(), "");
            assert!(text("t", ptr::null(), 1).unwrap_err().message.contains("NULL"));
            assert!(
                text("t", ptr::null(), RRPC_NUL_TERMINATED)
                    .unwrap_err()
                    .message
                    .contains("NULL")
            );
            assert!(
                text("t", c"ab\xff".as_ptr(), 3)
                    .unwrap_err()
                    .message
                    .contains("byte 2")
            );
            assert!(
                text("t", c"ab".as_ptr(), LONGEST_TEXT + 1)
                    .unwrap_err()
                    .message
                    .contains("at most")
            );
        }
    }

    #[test]
    fn copying_out_asks_fills_or_refuses() {
        let mut out = [0u32; 3];
        let mut count = 0;
        // SAFETY: `out` has 3 places.
        unsafe {
            copy_out(&[1, 2, 3], ptr::null_mut(), 0, &raw mut count).unwrap();
            assert_eq!(count, 3);
            let refused = copy_out(&[1, 2, 3, 4], out.as_mut_ptr(), 3, &raw mut count).unwrap_err();
            assert_eq!(
                (refused.code, count, out),
                (RRPC_ERROR_BUFFER_TOO_SMALL, 4, [0; 3])
            );
            copy_out(&[1, 2], out.as_mut_ptr(), 3, &raw mut count).unwrap();
            assert_eq!((count, out), (2, [1, 2, 0]));
            assert!(copy_out(&[1u32], ptr::null_mut(), 1, &raw mut count).is_err());
            assert!(copy_out(&[1u32], out.as_mut_ptr(), 1, ptr::null_mut()).is_err());
        }
    }
}
