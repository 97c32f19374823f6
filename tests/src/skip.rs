//! Tests that cannot run where they are, and say so.

use std::io::Write;

/// Says that a test is not run, and what would let it run. Unlike `eprintln!` this is seen also
/// when the test passes.
pub fn skipped(test: &str, remedy: &str) {
    let line = format!("SKIPPED: {test}; {remedy}\n");
    // A closed standard error is no reason to fail.
    drop(std::io::stderr().write_all(line.as_bytes()));
}
