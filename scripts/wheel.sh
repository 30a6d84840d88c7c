#!/usr/bin/env bash
# Builds the Python package's wheel in release mode, checks its tags, installs it into a clean virtual environment that sees
# no compiler, and tries it there. The wheel stays in target/wheels/.
#
#   PYTHON    the interpreter, 3.10 or newer (python3)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
target=${CARGO_TARGET_DIR:-target}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/build"
maturin=$(grep '^maturin==' python/requirements-dev.txt)
"$scratch/build/bin/python" -m pip install --quiet "$maturin"
rm -rf "$target/wheels"
"$scratch/build/bin/maturin" build --quiet --locked --release --interpreter "$scratch/build/bin/python" --out "$target/wheels"
wheel=$(echo "$target"/wheels/upg-*.whl)

# One native module for every CPython from 3.10 on; on Linux for every distribution whose C library is not older.
case $(uname -s):$wheel in
    Linux:*-cp310-abi3-manylinux_*.whl | Darwin:*-cp310-abi3-macosx_*.whl) ;;
    *) echo "$wheel has not the tags of a portable wheel" >&2; exit 1 ;;
esac

"$python" -m venv "$scratch/clean"
"$scratch/clean/bin/python" -m pip install --quiet --only-binary :all: "$wheel"
"$scratch/clean/bin/python" -m pip check
cd "$scratch"
env -i PATH="$scratch/clean/bin" python -c 'import upg; print("upg", upg.__version__, [d["name"] for d in upg.devices()])'
env -i PATH="$scratch/clean/bin" upg bench --synthetic phi-4 --layers 1 -p 0 -n 2 -r 1
cd - >/dev/null
echo "$wheel"
