//! `ebb`: everything in one binary.

use std::process::ExitCode;

use ebb::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ebb::run(Cli::read())
}
