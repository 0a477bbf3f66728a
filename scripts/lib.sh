# For scripts/demo and scripts/test: Debian packages and a Python environment, both installed only if they
# are missing. To be sourced, with `set -euo pipefail`; asks nothing.
# shellcheck shell=bash

ROOT=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/vfiotool
PYTHON=${PYTHON:-/usr/bin/python3}

# The building of the package needs these; the lab, and the building of its kernel, these and more.
BUILD_PACKAGES=(python3-venv python3-dev gcc libc6-dev)
LAB_PACKAGES=("${BUILD_PACKAGES[@]}" qemu-system-x86 busybox-static udev kmod pciutils pci.ids)
KERNEL_PACKAGES=(make gcc libc6-dev flex bison bc libelf-dev lz4 xz-utils kmod python3)

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo -n "$@"
    fi
}

install_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# need_packages NAME...: install those of these Debian packages that are missing.
need_packages() {
    local name missing=()
    for name in "$@"; do
        [[ $(dpkg-query -Wf '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    say "Installing ${missing[*]}"
    ((EUID == 0)) || sudo -n true 2>/dev/null ||
        fail "these packages are missing: ${missing[*]}" "install them, or run this as root or with sudo"
    # The package lists may be absent or old: then what they name cannot be had.
    install_packages "${missing[@]}" 2>/dev/null && return
    as_root apt-get -qq -o DPkg::Lock::Timeout=300 update
    install_packages "${missing[@]}" || fail "apt-get cannot install ${missing[*]}" "see what it says above"
}

# need_venv [EXTRA]: have the project, with that optional dependency set, in a virtual environment; VENV is its
# folder. What is installed is the wheel, as users get it, and not the checkout: nothing is written there, and
# a file that the wheel lacks is found out. It is built again only where the sources have changed.
need_venv() {
    local extra=${1-} key sources installed work
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$PYTHON is not Python 3.10 or later" "name another one: PYTHON=/path/to/python3 $0"
    key=$("$PYTHON" -c 'import sys; print(*sys.argv[1:], sys.executable, sys.version)' "$ROOT" | sha256sum)
    VENV=$CACHE/venv-${key:0:12}
    sources=$(sources_stamp)
    installed=$(cat "$VENV/stamp" 2>/dev/null || true)
    [[ $installed == "$sources $extra" || ($installed == "$sources "* && -z $extra) ]] && return
    say "Installing vfiotool into $VENV"
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder's name is meant as it is now
    trap "rm -rf '$work'" EXIT
    [[ -x $VENV/bin/pip ]] || "$PYTHON" -m venv --clear "$VENV"
    rm -f "$VENV/stamp"
    (cd "$ROOT" && cp -r --parents "${SOURCES[@]}" "$work")
    find "$work" -name '*.so' -delete
    pip wheel --no-deps --wheel-dir "$work/dist" "$work"
    WHEEL=$(basename "$work"/dist/*.whl)
    pip install --force-reinstall --no-deps "$work/dist/$WHEEL"
    pip install "vfiotool${extra:+[$extra]} @ file://$work/dist/$WHEEL"
    printf '%s' "$sources $extra" >"$VENV/stamp"
    rm -rf "$work"
    trap - EXIT
}

SOURCES=(vfiotool c_shim setup.py pyproject.toml README.md LICENSE MANIFEST.in)

sources_stamp() {
    (cd "$ROOT" && find "${SOURCES[@]}" -type f -not -path '*/__pycache__/*' -not -name '*.so' -print0 |
        sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}

pip() {
    PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        "$VENV/bin/python" -m pip --quiet "$@"
}

# need_igb: have a QEMU that has igb; IGB_QEMU is the folder of its program, empty where it is the machine's own.
# Where none can be had, what drives igb is not tested.
need_igb() {
    IGB_QEMU=$("$VENV/bin/python" "$ROOT/scripts/lab_qemu.py") || say "Without igb"
}
