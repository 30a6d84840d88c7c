#!/usr/bin/env bash
# Fetches NVRTC, NVIDIA's run-time compiler (the wheel nvidia-cuda-nvrtc on PyPI), into models/nvrtc/: the tests compile
# the CUDA kernels with it, no card needed. Does nothing where it is already there, or where there is no wheel for
# this computer.
set -euo pipefail
cd "$(dirname "$0")/.."

version=13.0.88
folder=models/nvrtc

if [ -f "$folder/libnvrtc.so.13" ]; then
    echo "$folder is there"
    exit 0
fi
if [ "$(uname -s)" != Linux ]; then
    echo "no NVRTC wheel is fetched on $(uname -s): install the CUDA toolkit for the tests of the cuda machine" >&2
    exit 0
fi

command -v python3 >/dev/null || { echo "python3 is missing: install Python 3 with pip" >&2; exit 1; }
rm -rf "$folder.part"
mkdir -p models/cache "$folder.part"
python3 -m pip download --no-deps --only-binary :all: --dest models/cache "nvidia-cuda-nvrtc==$version"

# Unpacked under another name: an interrupted run leaves no half library.
python3 - models/cache/nvidia_cuda_nvrtc-"$version"-*.whl "$folder.part" <<'PYTHON'
import pathlib, shutil, sys, zipfile
wheel, out = sys.argv[1], pathlib.Path(sys.argv[2])
with zipfile.ZipFile(wheel) as archive:
    for member in archive.namelist():
        name = pathlib.PurePosixPath(member).name
        if name.startswith("libnvrtc") and ".alt." not in name:
            with archive.open(member) as source, open(out / name, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
PYTHON
mv "$folder.part" "$folder"
rm -f models/cache/nvidia_cuda_nvrtc-"$version"-*.whl
echo "$folder fetched"
