#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU needs to run artifacts, in one folder: intcert, TVM's runtime half and the
# CUDA runtime. That machine has a driver (580 or newer) and Python, and nothing else has to be installed.
#
#   board/gpu_package.sh FOLDER [PYTHON [ARCHITECTURE]]      by default 3.11 and x86_64
#
# There: PYTHONPATH=FOLDER python3 -c 'from intcert.cli.main import main; main()' certify m.intcert ...
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTHON [ARCHITECTURE]]" >&2; exit 2; }
folder=$1 python=${2:-3.11} architecture=${3:-x86_64}
repository=$(cd "$(dirname "$0")/.." && pwd)
pip=${PIP:-$repository/.venv/bin/pip}

"$repository/board/runtime_package.sh" "$folder" "$python" "$architecture" \
    'nvidia-cuda-runtime>=13,<14' numpy scipy mpmath pillow click rich markdown-it-py mdurl pygments
# Built from a copy, since setuptools leaves its own folders beside the sources.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$repository" archive HEAD | tar x -C "$copy"
"$pip" install --quiet --disable-pip-version-check --no-compile --no-deps --target "$folder" "$copy"
rm -rf "$folder"/nvidia/cu*/include "$folder"/*/tests "$folder"/scipy/*/tests "$folder"/bin
