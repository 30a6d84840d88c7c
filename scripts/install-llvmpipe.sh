#!/usr/bin/env bash
# Makes sure that there is a Vulkan adapter for the tests of the wgpu machine: where Linux has no Vulkan driver at all,
# installs Mesa's, which includes llvmpipe, an adapter emulated by the processor. Does nothing where there is one.
set -euo pipefail

if [ "$(uname -s)" != Linux ]; then
    echo "Vulkan is not needed on $(uname -s)"
    exit 0
fi
for folder in /usr/share/vulkan/icd.d /etc/vulkan/icd.d /usr/local/share/vulkan/icd.d; do
    if compgen -G "$folder/*.json" >/dev/null && ldconfig -p | grep -q 'libvulkan\.so\.1'; then
        echo "a Vulkan driver is there ($folder)"
        exit 0
    fi
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    # The tests that need an adapter fail and say so; the others run.
    echo "no Vulkan driver was found: for the tests of the wgpu machine install Mesa's, as root" >&2
    echo "(Debian, Ubuntu: apt-get install mesa-vulkan-drivers; Fedora: dnf install mesa-vulkan-drivers)" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends libvulkan1 mesa-vulkan-drivers
