# The few things one does here. `just` lists them.

default:
    @just --list

# What must pass before a commit.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace

# The main job, on this machine's own files.
demo:
    cargo run --release -- demo

# Ours against the kernel's KSM, side by side.
bench:
    cargo bench -p testsuite --bench against_kernel

# Everything that the automatic check of a change does.
ci:
    bash .ci/run
