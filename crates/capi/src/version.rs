//! Versions.

use std::ffi::c_char;

/// Major version of this header.
pub const RRPC_VERSION_MAJOR: u32 = 0;
/// Minor version of this header.
pub const RRPC_VERSION_MINOR: u32 = 1;
/// Patch version of this header.
pub const RRPC_VERSION_PATCH: u32 = 0;

/// Version of the ABI that this header describes, and the number at the end of the library's
/// soname. A library with the same number serves every program built against it; functions,
/// constants and fields at the ends of structs are added without a new number.
pub const RRPC_ABI_VERSION: u32 = 0;

/// The version of the library that is loaded, such as "0.1.0".
///
/// Ownership: the string is the library's; it is never freed.
/// Threads: any, at any time.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The ABI version of the library that is loaded. A program that loads the library itself (`dlopen`)
/// compares it with RRPC_ABI_VERSION before anything else; the dynamic linker does so by the soname.
///
/// Ownership: nothing changes hands.
/// Threads: any, at any time.
/// Errors: none.
/// Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn rrpc_abi_version() -> u32 {
    RRPC_ABI_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_packages_version() {
        let header = format!("{RRPC_VERSION_MAJOR}.{RRPC_VERSION_MINOR}.{RRPC_VERSION_PATCH}");
        assert_eq!(header, env!("CARGO_PKG_VERSION"));
    }
}
