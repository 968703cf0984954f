# shellcheck shell=bash
# What the scripts share: installing what is missing, and the network of the rigs (integration/support/rig/mod.rs shows
# it). To be sourced by a script that has set `root` to the repository's directory.
: "${root:?set by the script that sources this}"

# Without root these are often not on the path, though everybody may run what is there.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
RIG=/run/rig

say() { printf '%s\n' "$*"; }

title() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# has COMMAND|/FILE
has() { command -v "$1" >/dev/null || [[ $1 == /* && -e $1 ]]; }

# install_missing COMMAND:PACKAGE|/FILE:PACKAGE...: by apt, as root or by sudo; returns 1 and says what is missing where it
# cannot.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        has "${pair%%:*}" || packages+=("${pair#*:}")
    done
    ((${#packages[@]})) || return 0
    install_packages "${packages[@]}"
}

# install_packages PACKAGE...: the same, whatever commands they hold.
install_packages() {
    local packages=("$@") sudo=() get install
    if ((EUID != 0)); then sudo=(sudo -n); fi
    if command -v apt-get >/dev/null && "${sudo[@]}" true 2>/dev/null; then
        say "installing: ${packages[*]}"
        get=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0
            -o Acquire::Retries=2 -o Acquire::http::Timeout=30)
        install=("${get[@]}" install -y --no-install-recommends "${packages[@]}")
        quiet_services "${sudo[@]}"
        # A machine with fresh package lists needs no update, and one without network may not do one.
        "${install[@]}" >/dev/null 2>&1 || up_to_three_times update_and_install >/dev/null
        local result=$?
        loud_services "${sudo[@]}"
        ((result)) || return 0
    fi
    say "missing, and not to be installed from here: ${packages[*]}"
    return 1
}

# With the words of install_packages, which alone calls it.
update_and_install() { "${get[@]}" update && "${install[@]}"; }

# up_to_three_times COMMAND...: until it succeeds; a mirror that is being written, or a network, has bad moments.
up_to_three_times() { "$@" || { sleep 10 && "$@"; } || { sleep 10 && "$@"; }; }

# Only the programs are wanted: installing nginx must not start a web server on this machine, now or at the next boot.
quiet_services() {
    [[ ! -e /usr/sbin/policy-rc.d ]] || return 0
    printf '#!/bin/sh\n# made by lbd, may be removed\nexit 101\n' | "$@" tee /usr/sbin/policy-rc.d >/dev/null
    "$@" chmod +x /usr/sbin/policy-rc.d
}

loud_services() {
    ! grep -q 'made by lbd' /usr/sbin/policy-rc.d || "$@" rm -f /usr/sbin/policy-rc.d
    if [[ " ${packages[*]} " == *" nginx-light "* ]] && command -v systemctl >/dev/null; then
        "$@" systemctl -q disable nginx 2>/dev/null || true
    fi
}

# The XDP program is compiled by clang; without it the build takes the compiled one that is in the repository.
need_clang() {
    install_missing clang:clang llvm-strip:llvm clang:libc6-dev ||
        say "the XDP program is not compiled anew: the object in the repository is used"
}

# A rustc as new as Cargo.toml asks for.
need_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    { command -v cargo && command -v rustc; } >/dev/null ||
        die "there is no Rust here; lbd needs $wanted or newer: https://rustup.rs"
    found=$(rustc --version | cut -d' ' -f2)
    [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]] ||
        die "this is Rust $found; lbd needs $wanted or newer: rustup update"
    command -v cc >/dev/null || install_missing cc:gcc cc:libc6-dev || die "there is no linker here: install gcc"
}

namespace_probe='mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add probe && ip tuntap add dev probe0 mode tun'
namespace_flags=(--net --mount --pid --fork --kill-child)

# Whether `enter_namespaces` would work.
has_namespaces() {
    unshare "${namespace_flags[@]}" sh -c "$namespace_probe" 2>/dev/null ||
        unshare --user --map-root-user "${namespace_flags[@]}" sh -c "$namespace_probe" 2>/dev/null
}

# Runs this script again, with the same arguments, in network, mount and process namespaces of its own: all it does
# ends with it. Returns in the inner process; dies where no namespaces are to be had.
enter_namespaces() {
    [[ -z ${LBD_RIG_INSIDE:-} ]] || return 0
    local flags=("${namespace_flags[@]}") why
    if ((EUID != 0)) || [[ -n ${LBD_RIG_USERNS:-} ]] || ! unshare "${flags[@]}" sh -c "$namespace_probe" 2>/dev/null; then
        flags=(--user --map-root-user "${flags[@]}")
        why=$(unshare "${flags[@]}" sh -c "$namespace_probe" 2>&1) ||
            die "this needs network namespaces and /dev/net/tun, which this machine does not give: $why"
    fi
    LBD_RIG_INSIDE=1 exec unshare "${flags[@]}" "$0" "$@"
}

# The namespaces client, lb, s1, s2 and s3 with their links, addresses and routes.
lay_network() { sh -eu "$root/integration/support/rig/lay.sh"; }

# in_ns NAMESPACE COMMAND...
in_ns() {
    local name=$1
    shift
    nsenter --net="/run/netns/$name" "$@"
}

# An HTTP server and a DNS server in each of s1, s2 and s3, which tell their names; /slow takes 4 s.
start_servers() {
    local number name
    head -c 16000000 /dev/urandom >"$RIG/slow"
    for number in 1 2 3; do
        name="s$number"
        mkdir -p "$RIG/$name/put"
        sed "s|NAME|$name|g; s|RIG|$RIG|g" "$root/integration/support/rig/nginx.conf" >"$RIG/$name/nginx.conf"
        in_ns "$name" nginx -e "$RIG/$name/error.log" -c "$RIG/$name/nginx.conf"
        in_ns "$name" dnsmasq -d --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces \
            --log-facility="$RIG/$name/dns.log" --txt-record="who.lbd.test,$name" \
            --listen-address="10.2.0.1$number,fd00:2::1$number" 2>/dev/null &
        wait_for "dnsmasq in $name" grep -q started "$RIG/$name/dns.log"
    done
}

# wait_for WHAT COMMAND...: until the command succeeds, for 10 s at most.
wait_for() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 200; tries++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    die "waited 10 s in vain for $what"
}

# start_lbd CONFIG: in lb, until it says that it is ready; sets lbd_pid. Its log is $RIG/lbd.log.
start_lbd() {
    : >"$RIG/lbd.log"
    nsenter --net=/run/netns/lb "${LBD:-$root/target/release/lbd}" --config "$1" 2>"$RIG/lbd.log" &
    lbd_pid=$!
    local tries
    for ((tries = 0; tries < 200; tries++)); do
        grep -q 'lbd ready:' "$RIG/lbd.log" && return 0
        kill -0 "$lbd_pid" 2>/dev/null || break
        sleep 0.05
    done
    cat "$RIG/lbd.log" >&2
    die "lbd did not get ready"
}

# stop_lbd: SIGTERM; it must end with exit code 0.
stop_lbd() {
    kill -TERM "$lbd_pid"
    wait "$lbd_pid" || {
        cat "$RIG/lbd.log" >&2
        die "lbd ended with exit code $?"
    }
}
