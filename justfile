# Names for plain commands; no logic.

# Everything that CI runs.
test:
    tests/run

check:
    cargo clippy --workspace --all-targets --release -- -D warnings

fmt:
    cargo fmt --all

demo:
    cargo run --release -- demo

# One crate's tests, such as `just one ebb-queue`.
one crate:
    cargo test --release -p {{crate}}

conformance:
    cargo test --release -p ebb-queue --test conformance

bench *args:
    cargo build --release --workspace --bins
    target/release/ebb-bench {{args}}

# The form for NVIDIA GPUs; needs none to build.
cuda:
    cargo build --profile cuda --locked --features cuda -p ebb --bin ebb

deny:
    cargo deny check
