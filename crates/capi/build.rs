//! How the shared library is linked.

#![allow(clippy::print_stdout)] // cargo reads it

fn main() {
    // The ABI's major version, as in RRPC_ABI_VERSION.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libreasoning_rpc.so.0");
    // ONNX Runtime's threads and this library's thread-local data outlive any dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
