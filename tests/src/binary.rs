//! Where the built binaries are, and an environment without a network.

use std::path::PathBuf;
use std::process::Command;

/// The built binary of this name: in `EBB_TEST_BIN_DIR`, else beside this test's own executable.
///
/// # Panics
/// When it has not been built, saying how to.
pub fn binary(name: &str) -> Command {
    let folder = std::env::var_os("EBB_TEST_BIN_DIR").map_or_else(beside_us, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing; run `cargo build --release --workspace --bins` first, or name the folder \
         of the binaries in EBB_TEST_BIN_DIR",
        path.display()
    );
    let mut command = Command::new(path);
    // What a developer has set for the daily work must not reach a test.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("EBB_") || name.starts_with("OTEL_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// `target/<profile>`, where cargo puts binaries: one above the `deps` folder of this executable.
fn beside_us() -> PathBuf {
    let executable = std::env::current_exe().expect("a running test has an executable");
    let deps = executable.parent().expect("an executable lies in a folder");
    deps.parent().expect("cargo puts tests in target/<profile>/deps").to_owned()
}

/// Lets the command reach no model hub and no package index: both stand for a closed local port.
pub fn offline(command: &mut Command) -> &mut Command {
    // Port 9 (discard) is closed on any machine that runs tests, and needs no root to be so.
    let nowhere = "http://127.0.0.1:9";
    command
        .env("HF_ENDPOINT", nowhere)
        .env("PIP_INDEX_URL", format!("{nowhere}/simple"))
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("PIP_RETRIES", "0")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .env_remove("PIP_EXTRA_INDEX_URL")
        .env_remove("PIP_FIND_LINKS")
}
