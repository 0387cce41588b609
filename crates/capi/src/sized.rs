//! Structs that grow with the ABI. Their first field is their size as the caller's header has it, new
//! fields are added at the end only, and they have no padding: so a shorter one is an older caller's
//! and a longer one a newer caller's.

use crate::error::Failure;

/// A struct_size beyond this is not one.
const LARGEST: usize = 4096;

/// A struct with `size_t struct_size` first.
///
/// # Safety
/// `repr(C)`, no padding, and every pattern of bits is a valid value: integers, floats, arrays of them, raw pointers,
/// optional pointers to functions.
pub(crate) unsafe trait Growing: Copy {
    /// The struct's name in C.
    const NAME: &'static str;
    /// Where each field ends, ascending.
    const ENDS: &'static [usize];
}

/// Implements [`Growing`]; fields are listed in order, and gaps between them do not compile.
macro_rules! sized {
    ($name:ident { struct_size, $($field:ident),+ $(,)? }) => {
        // SAFETY: the assertion below excludes padding; the fields of every struct listed are integers,
        // floats, arrays of integers, raw pointers and optional pointers to functions.
        unsafe impl $crate::sized::Growing for $name {
            const NAME: &'static str = stringify!($name);
            const ENDS: &'static [usize] = &[
                size_of::<usize>(),
                $(std::mem::offset_of!($name, $field) + $crate::sized::width(|s: &$name| &s.$field),)+
            ];
        }
        const _: () = {
            let mut end = size_of::<usize>();
            assert!(std::mem::offset_of!($name, struct_size) == 0);
            $(
                assert!(std::mem::offset_of!($name, $field) == end, "padding before a field");
                end += $crate::sized::width(|s: &$name| &s.$field);
            )+
            assert!(size_of::<$name>() == end, "padding at the end");
        };
    };
}
pub(crate) use sized;

/// The size of a field.
pub(crate) const fn width<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// Bytes of whole fields in the first `size` bytes.
fn known<T: Growing>(size: usize) -> usize {
    T::ENDS
        .iter()
        .copied()
        .take_while(|&end| end <= size)
        .last()
        .unwrap_or(0)
}

fn check<T: Growing>(size: usize) -> Result<(), Failure> {
    if (size_of::<usize>()..=LARGEST).contains(&size) {
        return Ok(());
    }
    Err(Failure::argument(format!(
        "{0}.struct_size: expected sizeof({0}), {1} bytes, found {size}; was the struct initialised?",
        T::NAME,
        size_of::<T>()
    )))
}

/// The caller's options; `defaults` where its struct ends early.
///
/// # Safety
/// `from` is NULL or points to as many bytes as its struct_size says.
pub(crate) unsafe fn read<T: Growing>(argument: &str, from: *const T, defaults: T) -> Result<T, Failure> {
    if from.is_null() {
        return Err(Failure::null(argument));
    }
    // SAFETY: every such struct begins with its size; the read needs no alignment.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    check::<T>(size)?;
    let mut value = defaults;
    let bytes = from.cast::<u8>();
    // SAFETY: `known` is at most `size` (readable, by the caller's promise) and at most the size of T,
    // for which every pattern of bits is valid.
    unsafe { bytes.copy_to_nonoverlapping((&raw mut value).cast(), known::<T>(size)) };
    for offset in size_of::<T>()..size {
        // SAFETY: below `size`.
        if unsafe { bytes.add(offset).read() } != 0 {
            return Err(Failure::argument(format!(
                "{argument}: {} has fields that this library (version {}) does not know, and they are not zero",
                T::NAME,
                env!("CARGO_PKG_VERSION")
            )));
        }
    }
    Ok(value)
}

/// Fills the caller's struct of `size` bytes with `value`, fields that it does not have left out, and
/// with zeros behind what this library knows.
///
/// # Safety
/// `to` is NULL or points to `size` writable bytes.
pub(crate) unsafe fn init<T: Growing>(
    argument: &str,
    to: *mut T,
    size: usize,
    value: &T,
) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(argument));
    }
    check::<T>(size)?;
    let known = known::<T>(size);
    // SAFETY: `known` <= `size` bytes are writable and `known` <= size_of::<T>() bytes are readable. The
    // size goes first and needs no alignment.
    unsafe {
        to.cast::<u8>().write_bytes(0, size);
        to.cast::<u8>()
            .copy_from_nonoverlapping((&raw const *value).cast(), known);
        to.cast::<usize>().write_unaligned(size);
    }
    Ok(())
}

/// The struct_size that the caller set in an output struct, checked.
///
/// # Safety
/// `to` is NULL or points to as many writable bytes as its struct_size says.
pub(crate) unsafe fn output_size<T: Growing>(argument: &str, to: *const T) -> Result<usize, Failure> {
    if to.is_null() {
        return Err(Failure::null(argument));
    }
    // SAFETY: as in `read`.
    let size = unsafe { to.cast::<usize>().read_unaligned() };
    check::<T>(size)?;
    Ok(size)
}

/// Fills an output struct as far as the caller's has room; fields unknown here become zero.
///
/// # Safety
/// As [`output_size`].
pub(crate) unsafe fn write<T: Growing>(argument: &str, to: *mut T, value: &T) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let size = output_size(argument, to)?;
        init(argument, to, size, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct sample {
        struct_size: usize,
        a: u32,
        b: f32,
        c: u64,
    }
    sized!(sample { struct_size, a, b, c });

    /// What a caller with a larger struct has.
    #[repr(C)]
    struct Larger {
        known: sample,
        tail: u64,
    }

    const DEFAULTS: sample = sample {
        struct_size: 24,
        a: 1,
        b: 2.0,
        c: 3,
    };

    fn read_as(size: usize, tail: u64) -> Result<sample, Failure> {
        let larger = Larger {
            known: sample {
                struct_size: size,
                a: 10,
                b: 20.0,
                c: 30,
            },
            tail,
        };
        // SAFETY: no size in these tests is above that of `Larger`, or it is refused.
        unsafe { read("options", (&raw const larger).cast(), DEFAULTS) }
    }

    #[test]
    fn fields_end_where_they_end() {
        assert_eq!(sample::ENDS, [8, 12, 16, 24]);
    }

    #[test]
    fn a_smaller_struct_keeps_the_defaults_of_what_it_lacks() {
        assert_eq!(
            read_as(24, 0).unwrap(),
            sample {
                struct_size: 24,
                a: 10,
                b: 20.0,
                c: 30
            }
        );
        assert_eq!(
            read_as(16, 0).unwrap(),
            sample {
                struct_size: 16,
                a: 10,
                b: 20.0,
                c: 3
            }
        );
        assert_eq!(
            read_as(12, 0).unwrap(),
            sample {
                struct_size: 12,
                a: 10,
                b: 2.0,
                c: 3
            }
        );
        // A field cut in two is not there.
        assert_eq!(
            read_as(14, 0).unwrap(),
            sample {
                struct_size: 14,
                a: 10,
                b: 2.0,
                c: 3
            }
        );
        assert_eq!(
            read_as(8, 0).unwrap(),
            sample {
                struct_size: 8,
                ..DEFAULTS
            }
        );
    }

    #[test]
    fn a_larger_struct_is_accepted_while_its_tail_says_nothing() {
        assert_eq!(read_as(32, 0).unwrap().c, 30);
        assert!(
            read_as(32, 1 << 56)
                .unwrap_err()
                .message
                .contains("does not know")
        );
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for size in [0, 7, LARGEST + 1, usize::MAX] {
            assert!(
                read_as(size, 0).unwrap_err().message.contains("24 bytes"),
                "{size}"
            );
        }
    }

    #[test]
    fn outputs_get_what_fits() {
        let mut larger = Larger {
            known: sample {
                struct_size: 32,
                a: 9,
                b: 9.0,
                c: 9,
            },
            tail: 9,
        };
        // SAFETY: 32 bytes are there.
        unsafe { write("out", (&raw mut larger).cast::<sample>(), &DEFAULTS).unwrap() };
        assert_eq!(
            larger.known,
            sample {
                struct_size: 32,
                ..DEFAULTS
            }
        );
        assert_eq!(larger.tail, 0);
        let mut smaller = sample {
            struct_size: 12,
            a: 9,
            b: 9.0,
            c: 9,
        };
        // SAFETY: 12 bytes are there.
        unsafe { write("out", &raw mut smaller, &DEFAULTS).unwrap() };
        assert_eq!(
            smaller,
            sample {
                struct_size: 12,
                a: 1,
                b: 9.0,
                c: 9
            }
        );
    }
}
