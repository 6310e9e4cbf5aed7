# shellcheck shell=bash
# Which tools the checks use, at which versions, and where they are kept. Sourced by the other scripts; does nothing
# by itself. Tools live outside the checkout, in a directory that carries their version: several checkouts share one
# copy, and raising a version here is all that an upgrade takes.

readonly buf_version=1.75.0
readonly cargo_deny_version=0.20.2
readonly cargo_fuzz_version=0.13.2
readonly grpcurl_version=1.9.4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly tools=${XDG_CACHE_HOME:-$HOME/.cache}/portico/tools

# The Python environment is keyed by what it contains, so that changing a pin makes a new one.
python_key=$(sha256sum "$root/scripts/python.txt" | cut -c1-12)
readonly python_key

readonly buf_dir=$tools/buf-$buf_version
readonly cargo_deny_dir=$tools/cargo-deny-$cargo_deny_version
readonly cargo_fuzz_dir=$tools/cargo-fuzz-$cargo_fuzz_version
readonly grpcurl_dir=$tools/grpcurl-$grpcurl_version
readonly python_dir=$tools/python-$python_key

# Everything of ours comes first in PATH, so that a tool of another version that happens to be installed is not used.
# Debian keeps servers in sbin, which is not in every user's PATH.
PATH=$buf_dir/node_modules/.bin:$cargo_deny_dir/bin:$cargo_fuzz_dir/bin:$grpcurl_dir/bin:$python_dir/bin:$PATH:/usr/sbin:/sbin
export PATH
