#!/usr/bin/env bash
# The tests of the codec and of the CPU machine, built for 64-bit Arm and run by QEMU's emulation of it: the NEON paths on
# a computer that has none. Debian's packages bring compiler, standard library, linker and emulator; as root they are
# installed here, elsewhere this says what is missing and tests nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

triple=aarch64-unknown-linux-gnu
root=/usr/aarch64-linux-gnu
packages=(rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)

# The distribution's compiler, beside whatever else is on the path: only it has this standard library.
rustc=/usr/bin/rustc

ready() {
    [ -x "$rustc" ] && [ -d "$("$rustc" --print sysroot)/lib/rustlib/$triple" ] && [ -d "$root/lib" ] &&
        command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null
}

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "not needed or not possible on $(uname -sm): on 64-bit Arm \`cargo test\` itself tests the NEON paths"
    exit 0
fi
if ! ready; then
    if ! command -v dpkg >/dev/null || ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        echo "THE NEON PATHS ARE NOT TESTED: for that a compiler for $triple and qemu-user are needed. On Debian, as root:" >&2
        echo "  dpkg --add-architecture arm64 && apt-get update && apt-get install ${packages[*]}" >&2
        exit 0
    fi
    export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${packages[@]}"
    ready || { echo "the packages are installed but $triple still cannot be built: see above" >&2; exit 1; }
fi

export RUSTC=$rustc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
# Loader and C library must be of one version: beside the cross compiler's there may be another, which the packages above
# depend on, and a program that has the loader of one and the library of the other does not end.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $root -E LD_LIBRARY_PATH=$root/lib"
# Another compiler's artefacts would be built anew each time if they shared a folder with the usual ones.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/aarch64
# The machine's own tests run whole models under every instruction set: minutes each for the emulator. Its kernels' are
# those of the library. (The documentation's examples would want this compiler's rustdoc.)
"${CARGO:-cargo}" test --locked --target "$triple" -p upg-codec --lib --tests "$@"
exec "${CARGO:-cargo}" test --locked --target "$triple" -p upg-cpu --lib "$@"
