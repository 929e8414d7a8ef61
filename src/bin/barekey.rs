//! `barekey`: with the feature `cli` the command for people, with `agent` alone the agent in pods.

#[cfg(not(any(feature = "cli", feature = "agent")))]
compile_error!(
    "barekey is built with the feature `cli` (the command) or with `agent` alone (the agent in pods)"
);

/// Wipes memory when it is freed, so that no copy of a value outlives its use.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

#[cfg(feature = "cli")]
fn main() -> std::process::ExitCode {
    barekey::cli::main()
}

#[cfg(all(feature = "agent", not(feature = "cli")))]
fn main() -> std::process::ExitCode {
    barekey::agent::main()
}

#[cfg(not(any(feature = "cli", feature = "agent")))]
fn main() {}
