# Shared by the scripts here: messages, missing packages, temporary mounts. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -t 1 ]; then BOLD=$'\033[1m' DIM=$'\033[2m' RED=$'\033[31m' PLAIN=$'\033[0m'; else BOLD='' DIM='' RED='' PLAIN=''; fi

say() { printf '\n%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root, if that needs no password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

APT_UPDATED=
# want COMMAND PACKAGE: makes a command available by installing its Debian package; fails when it cannot be had.
want() {
    have "$1" && return 0
    have apt-get || return 1
    note "installing $2 (for $1)"
    if [ -z "$APT_UPDATED" ]; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null 2>&1 || return 1
        APT_UPDATED=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1 &&
        have "$1"
}

# need COMMAND PACKAGE: the same for what nothing works without.
need() {
    want "$1" "$2" || die "$1 is missing and cannot be installed from here: install the package \"$2\", then try again"
}

need_rust() {
    need cc build-essential
    have cargo || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
    have cargo || die "Rust is missing: install it as https://rustup.rs says, then try again"
}

need_fuse() {
    need fusermount3 fuse3
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "/dev/fuse is missing: this kernel or container has no FUSE (docker: --device /dev/fuse --cap-add SYS_ADMIN)"
    [ -w /dev/fuse ] || die "/dev/fuse is not yours to use: its mode should be 0666, as Debian sets it"
}

# What building and mounting need on a machine with Debian's base alone.
need_basics() {
    need_rust
    need_fuse
}

# Mounts of this script, and its scratch directory; gone at the end, whatever happens.
SCRATCH=
MOUNTS=()
scratch() {
    SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/swamp-mount.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}
clean_up() {
    local status=$? mount
    cd /
    for mount in "${MOUNTS[@]}"; do
        if mountpoint -q "$mount"; then
            "$SWAMP_MOUNT" unmount "$mount" >/dev/null 2>&1 || umount -l "$mount" 2>/dev/null ||
                fusermount3 -uz "$mount" 2>/dev/null || true
        fi
    done
    [ -z "$SCRATCH" ] || rm -rf --one-file-system "$SCRATCH"
    exit "$status"
}
