//! What the performance figures in the README come from: `make bench`.
//!
//! Every figure is a ratio against something that is measured beside it, in the same run and by turns, since the machine
//! that it runs on is shared: evaluate beside a bare route that answers constant bytes and beside one synced write of
//! 4 KiB; the agent's start beside a plain start of the same program; admission beside a constant answer.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a bench stops loudly, and printing is what it is for"
)]

mod admission;
mod agent_start;
mod evaluate;
mod load;

#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<mimalloc::MiMalloc> =
    zeroizing_alloc::ZeroAlloc(mimalloc::MiMalloc);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        // This program is also the constant server that the others are measured beside.
        Some("serve-constant") => load::serve_constant(&arguments[1..]),
        // `cargo bench` passes `--bench`; a word picks one of them.
        only => {
            let only = only.filter(|word| !word.starts_with('-'));
            let wanted = |name: &str| only.is_none_or(|only| only == name);
            if wanted("evaluate") {
                evaluate::run();
            }
            if wanted("agent-start") {
                agent_start::run();
            }
            if wanted("admission") {
                admission::run();
            }
        }
    }
}
