# Shared by the scripts of this folder: where things are, and how one enters the cluster's network namespace.
# Everything of a cluster stands under $DIR and in the network namespace $NETNS, so that `down` can take all of it away.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
DIR=${DORMOUSE_CLUSTER_DIR:-/var/lib/dormouse-cluster}
NETNS=${DORMOUSE_CLUSTER_NETNS:-dormouse-cluster}
# Two clusters on one machine need a folder, a namespace and a cgroup each; the cgroup is named after the namespace.
CGROUP=$NETNS
CACHE=${DORMOUSE_CACHE:-$HOME/.cache/dormouse}
KUBERNETES_VERSION=1.35.4

# The benchmarking range: no real network has these addresses, and no route leads out of the namespace.
NODE_IP=198.18.0.1
POD_CIDR=198.18.64.0/20
SERVICE_CIDR=198.18.128.0/20
FIRST_SERVICE_IP=198.18.128.1
SOCKET=$DIR/containerd.sock
KUBECONFIG_FILE=$DIR/admin.kubeconfig

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

need_root() {
    [ "$(uname -s)" = Linux ] || die "a real cluster needs Linux; this is $(uname -s)"
    [ "$(id -u)" = 0 ] || die "a real cluster needs root (network namespaces, containers): run this with sudo"
}

# Runs a command inside the cluster's network. `ip netns exec` would remount /sys and hide the cgroups from kubelet and runc.
inside() { nsenter --net="/run/netns/$NETNS" -- "$@"; }

# kubectl as the cluster's admin. kubectl is older than the cluster by more than it likes: its skew warning is dropped.
k() { inside kubectl --kubeconfig "$KUBECONFIG_FILE" "$@" 2> >(grep -v 'version difference between client' >&2); }

ctr_k8s() { ctr -a "$SOCKET" -n k8s.io "$@"; }

# Cargo builds static programs from here on, because an image holds nothing else. For the target alone, so that build scripts
# and macros stay as they are; no musl is needed: the binary resolves no names but those that libc reads from files and DNS itself.
static_build() {
    local triple
    triple=$(rustc -vV | sed -n 's/^host: //p')
    local key=${triple^^}
    export CARGO_BUILD_TARGET=$triple "CARGO_TARGET_${key//-/_}_RUSTFLAGS=-Ctarget-feature=+crt-static"
}

# Where cargo puts what it builds.
target_directory() { (cd "$ROOT" && cargo metadata --format-version 1 --no-deps) | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'; }

# wait_for SECONDS DESCRIPTION COMMAND…: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || die "waited in vain for $what"
        sleep 0.1
    done
}

# built NAME FOLDER FLAGS [PACKAGE]: a Go program, the one in FOLDER or the one that its go.mod names, built unless this
# content was built before; prints its path.
built() {
    local content program
    content=$(shopt -s nullglob; cat "$HERE/$2"/go.{mod,sum} "$HERE/$2"/*.go | sha256sum | cut -c1-16)
    program=$CACHE/$1-$content
    if [ ! -x "$program" ]; then
        say "building $1 (Kubernetes takes about 7 minutes, once)"
        mkdir -p "$CACHE"
        (cd "$HERE/$2" && CGO_ENABLED=0 go build -trimpath -o "$program.part" -ldflags "-s -w $3" "${4:-.}")
        mv "$program.part" "$program"
    fi
    printf '%s' "$program"
}
