//! Names the shared library (rustc sets no SONAME) and keeps it loaded: a thread that used the library runs its thread-local
//! destructors at exit, also after a `dlclose`. (`rustc-link-arg` stays with this package; `rustc-cdylib-link-arg` would also name the
//! libraries of packages that depend on it.)

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if target == "linux" {
        println!("cargo:rustc-link-arg=-Wl,-soname,libnearfile.so.0");
        println!("cargo:rustc-link-arg=-Wl,-z,nodelete");
        // The tool gets the above, too: the last name counts, and it must not be the library's.
        println!("cargo:rustc-link-arg-bins=-Wl,-soname,nearfile");
    }
}
