#!/usr/bin/env bash
# The tour that `make demo` gives: fetch a real model, compress it, look at it, talk to it, and see how fast Phi-4
# would decode here.
#
#   UPG           the upg binary                               (target/release/upg)
#   DEMO_BITS     average bits a weight of the talking model   (5)
#   DEMO_PROMPT   what it is asked
#   PHI4_LAYERS   layers of the synthetic Phi-4                (what fits in memory, up to all 40)
set -euo pipefail
cd "$(dirname "$0")/.."

upg=${UPG:-target/release/upg}
bits=${DEMO_BITS:-5}
prompt=${DEMO_PROMPT:-"What is gravity?"}
source=models/SmolLM2-135M-Instruct.Q4_1.gguf
talking=models/smollm2-${bits}bit.upg
small=models/smollm2-10to1.upg

step() { printf '\n== %s\n' "$*"; }
show() { printf '$ upg %s\n' "$*"; "$upg" "$@"; }

# 40 layers of Phi-4 take 5.5 GiB, plus the KV cache and scratch; without /proc/meminfo all of them are tried.
phi4_layers() {
    local available_mib
    available_mib=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo 2>/dev/null || true)
    [ -z "$available_mib" ] && { echo 40; return; }
    local layers=$(((available_mib - 1500) / 150))
    echo $((layers > 40 ? 40 : layers < 1 ? 1 : layers))
}

step "1. Fetch SmolLM2-135M-Instruct"
scripts/fetch-smollm2.sh

step "2. Compress it to $bits bits a weight"
show compress "$source" -o "$talking" --bits "$bits" --calibrate none --force

step "3. Compress it 10:1 as well"
show compress "$source" -o "$small" --ratio 10 --force

step "4. Look at both"
show inspect "$talking"
show inspect "$small"

step "5. Ask it something ($bits bits a weight)"
show run "$talking" "$prompt" --temperature 0 --max-tokens 120
cat <<TEXT

A model of 135 M parameters has little to spare: at 10:1 (3.2 bits a weight) this one babbles, which is why the answer
above comes from the $bits-bit file. 10:1 is meant for models like Phi-4, a hundred times larger.
TEXT

step "6. How fast Phi-4 (14.66 B parameters) would decode here"
show bench --synthetic phi-4 --layers "${PHI4_LAYERS:-$(phi4_layers)}" -p 16 -n 8 -r 2
