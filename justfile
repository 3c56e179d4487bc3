# What a developer types. `just` lists it; nothing needs `just`, each recipe is a line or two that can be typed too.

# List the recipes.
default:
    @just --list

# Format all code.
[group('check')]
fmt:
    cargo fmt --all

# Lints; a warning is an error.
[group('check')]
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Licenses, doubled crates, where crates come from; with internet also known faults (needs cargo-deny).
[group('check')]
deny *checks:
    cargo deny --locked check {{ checks }}

# The documentation of the code; a broken link is an error.
[group('check')]
doc:
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked

# What CI runs.
[group('check')]
ci:
    .ci/run

# Install what the tests need, build their guests, run all tests.
[group('test')]
test:
    ./setup test

# Unit, golden and property tests: no QEMU, no guest, seconds.
[group('test')]
test-unit *args:
    cargo test --workspace --locked --lib --bins --test command_lines {{ args }}

# The real binary from outside, boots with QEMU included; `just test-it boot` runs those whose name has `boot`.
[group('test')]
test-it *args:
    cargo build --locked --example fake-qemu
    cargo test --locked --test it {{ args }}

# What takes minutes more: every kind of Ignition config on every architecture, fifty rounds of up and down.
[group('test')]
test-long *args:
    cargo test --locked --test long {{ args }}
    KILN_TEST_ROUNDS=50 cargo test --locked --test it -- boot::namespace::rounds

# Feed the readers of hostile input with what a fuzzer thinks of: a target's name, or `all`, and for how many seconds.
[group('test')]
fuzz target='all' seconds='60':
    fuzz/run {{ target }} {{ seconds }}

# Write golden files and expected texts anew; read the difference before you commit it.
[group('test')]
bless:
    UPDATE_EXPECT=1 cargo test --workspace --locked --lib --bins --test '*' --no-fail-fast

# Build a guest (tiny, disk, full) of an architecture and print its folder.
[group('test')]
guest arch='x86_64' kind='tiny':
    tests/guest/build {{ kind }} {{ arch }}

# Build kiln and boot the three machines of examples/three.
[group('run')]
demo:
    ./setup demo

# Take the demo down.
[group('run')]
demo-down:
    target/release/kiln -f examples/three/kiln.yaml down

# Time kiln beside raw QEMUs, by turns, in one run; optimized builds.
[group('run')]
bench *args:
    cargo build --release --locked --bin kiln --example bench
    target/release/examples/bench {{ args }}
