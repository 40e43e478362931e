#!/bin/sh
# Installs the pinned torch without CUDA on machines that have no NVIDIA GPU.
# Usage: install_torch.sh PYTHON CPU_INDEX
set -eu
python=$1
index=$2
pin=$(grep '^torch==' constraints.txt)
reachable() {
    "$python" -c "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)" "$1" 2>/dev/null
}
if command -v nvidia-smi >/dev/null 2>&1 || [ "$(uname -s)" != Linux ]; then
    exec "$python" -m pip install --quiet --no-compile "$pin"
elif reachable "$index/torch/"; then
    exec "$python" -m pip install --quiet --no-compile "$pin" --index-url "$index"
else
    exec "$python" -m pip install --quiet --no-compile "$pin"
fi
