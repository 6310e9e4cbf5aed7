# Short names for the scripts, which work without just as well.

# Lists the recipes.
default:
    @just --list

# Installs what is needed: `just setup build` for building only.
setup what="test":
    scripts/setup {{ what }}

# Builds the program.
build:
    cargo build --release --locked

# Runs a small cluster in one process: `just run --manifests DIR` for your own.
run *args:
    cargo run --release --locked -- standalone {{ args }}

# Brings a cluster up on this machine, or works in it: `just sandbox up`, `just sandbox down`.
sandbox *args:
    scripts/sandbox {{ args }}

# Runs every check, or the named ones.
test *steps:
    scripts/test {{ steps }}

# Checks form only: formatting, clippy, the protocol, dependencies.
lint:
    scripts/test format clippy proto deny

# Formats all code.
fmt:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml

# Fuzzes every target, or the named ones.
fuzz seconds="60" *targets:
    scripts/fuzz {{ seconds }} {{ targets }}

# Compares with HAProxy and nginx.
bench *args:
    scripts/bench {{ args }}
