#!/usr/bin/env bash
# Builds the Python package, installs it into a virtual environment under target/, and runs its tests there.
#
#   PYTHON    the interpreter, 3.10 or newer          (python3)
#   PROFILE   cargo's profile for the native module   (dev, which shares what `cargo test` has built)
#
# Arguments go to pytest. What is up to date is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
profile=${PROFILE:-dev}
target=${CARGO_TARGET_DIR:-target}
venv=$target/python
requirements=python/requirements-dev.txt

"$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
    echo "$python is older than 3.10 or has no venv: set PYTHON to one that fits, or install python3-venv" >&2
    exit 1
}
if ! cmp -s "$requirements" "$venv/requirements"; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --requirement "$requirements"
    cp "$requirements" "$venv/requirements"
fi

rm -rf "$target/wheels-$profile"
"$venv/bin/maturin" build --quiet --locked --profile "$profile" --interpreter "$venv/bin/python" \
    --out "$target/wheels-$profile"
"$venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$target/wheels-$profile"/upg-*.whl
"$venv/bin/python" -m pytest "$@"
