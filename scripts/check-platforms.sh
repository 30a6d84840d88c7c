#!/usr/bin/env bash
# Type-checks the command for Windows and macOS, on Debian: nothing is linked or run. Debian has no standard library for these
# systems, so it is checked from its source together with everything else; and C code, of which only object files would come, is
# compiled for Windows and left out for macOS. As root the packages are installed, elsewhere this says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(rustc-web rust-web-src gcc-mingw-w64-x86-64-win32 binutils-mingw-w64-x86-64)

# The distribution's compiler: its source lies beside it.
rustc=/usr/bin/rustc
source=/usr/lib/rustlib/src/rust/library

ready() { [ -x "$rustc" ] && [ -d "$source" ] && command -v x86_64-w64-mingw32-gcc >/dev/null; }

if ! ready; then
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        echo "needed: Debian's packages ${packages[*]}; or, with rustup, \`rustup target add\` and \`cargo check --target\`" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${packages[@]}"
    ready || { echo "the packages are installed but something is still missing: see above" >&2; exit 1; }
fi

# A stable compiler builds its own standard library only if it is told to take unstable options.
export RUSTC=$rustc RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT=$source
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/platforms CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0
# `true` instead of a C compiler for macOS, and some folder instead of its headers.
export CC_aarch64_apple_darwin=true CXX_aarch64_apple_darwin=true AR_aarch64_apple_darwin=true
export SDKROOT=/ MACOSX_DEPLOYMENT_TARGET=11.0

for target in x86_64-pc-windows-gnu aarch64-apple-darwin; do
    echo "== $target"
    "${CARGO:-cargo}" check --locked -Zbuild-std=std,panic_abort --target "$target" -p upg-cli "$@"
done
