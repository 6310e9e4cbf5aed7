# shellcheck shell=bash
# Which tools the checks use, at which versions, where they are kept and how they get there. Sourced by the other
# scripts; does nothing by itself. Tools live outside the checkout, in a directory that carries their version: several checkouts share one
# copy, and raising a version here is all that an upgrade takes.

readonly buf_version=1.75.0
readonly cargo_deny_version=0.20.2
readonly cargo_fuzz_version=0.13.2
readonly grpcurl_version=1.9.4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly tools=${XDG_CACHE_HOME:-$HOME/.cache}/portico/tools

# The cluster's programs are built from Go modules of this repository, so their versions stand in go.mod.
# go_version DIRECTORY MODULE: the version that tests/cluster/DIRECTORY/go.mod requires of MODULE, without the "v".
go_version() {
    local line module version
    while read -r line; do
        read -r module version _ <<<"${line#require }"
        [[ $module == "$2" && $version == v* ]] || continue
        echo "${version#v}"
        return
    done <"$root/tests/cluster/$1/go.mod"
    echo "tests/cluster/$1/go.mod requires no $2" >&2
    return 1
}
kubernetes_version=$(go_version kubernetes k8s.io/kubernetes)
etcd_version=$(go_version etcd go.etcd.io/etcd/server/v3)
helm_version=$(go_version helm helm.sh/helm/v3)
jaeger_version=$(go_version jaeger github.com/jaegertracing/jaeger)
coredns_version=$(go_version coredns github.com/coredns/coredns)
readonly kubernetes_version etcd_version helm_version jaeger_version coredns_version

# The Python environment is keyed by what it contains, so that changing a pin makes a new one.
python_key=$(sha256sum "$root/scripts/python.txt" | cut -c1-12)
readonly python_key

readonly buf_dir=$tools/buf-$buf_version
readonly cargo_deny_dir=$tools/cargo-deny-$cargo_deny_version
readonly cargo_fuzz_dir=$tools/cargo-fuzz-$cargo_fuzz_version
readonly grpcurl_dir=$tools/grpcurl-$grpcurl_version
readonly python_dir=$tools/python-$python_key
readonly kubernetes_dir=$tools/kubernetes-$kubernetes_version
readonly etcd_dir=$tools/etcd-$etcd_version
readonly helm_dir=$tools/helm-$helm_version
readonly jaeger_dir=$tools/jaeger-$jaeger_version
readonly coredns_dir=$tools/coredns-$coredns_version

# Everything of ours comes first in PATH, so that a tool of another version that happens to be installed is not used.
# Debian keeps servers in sbin, which is not in every user's PATH.
PATH=$buf_dir/node_modules/.bin:$cargo_deny_dir/bin:$cargo_fuzz_dir/bin:$grpcurl_dir/bin:$python_dir/bin:$PATH:/usr/sbin:/sbin
PATH=$kubernetes_dir/bin:$etcd_dir/bin:$helm_dir/bin:$jaeger_dir/bin:$coredns_dir/bin:$PATH
export PATH

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# cached DIR NAME COMMAND...: runs the command unless DIR is there. It installs to DIR.partial, which takes its name
# only when all went well: an interrupted run leaves nothing that looks finished. Of two runs at once the second waits
# for the first and then finds what that one made.
cached() {
    local dir=$1 name=$2 lock
    shift 2
    [[ -d $dir ]] && return 0
    mkdir -p "$tools"
    exec {lock}>"$dir.lock"
    flock "$lock"
    if [[ ! -d $dir ]]; then
        say "installing $name to $dir"
        rm -rf "$dir.partial"
        mkdir -p "$dir.partial"
        "$@" "$dir.partial" </dev/null >&2
        mv "$dir.partial" "$dir"
    fi
    rm -f "$dir.lock"
    exec {lock}>&-
}
