#!/usr/bin/env bash
# What a board needs of TVM: its runtime half, without compiler, headers and sources, for any processor.
#
#   board/runtime_package.sh FOLDER [PYTHON [ARCHITECTURE [PACKAGE...]]]      by default 3.11 and aarch64
#
# FOLDER then goes into the board's site-packages, or is named by PYTHONPATH there; NumPy comes from the board's own
# system, or as a PACKAGE. Wheels come from where this machine's pip takes them; PIP names the pip to ask.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTHON [ARCHITECTURE [PACKAGE...]]]" >&2; exit 2; }
folder=$1 python=${2:-3.11} architecture=${3:-aarch64}
repository=$(cd "$(dirname "$0")/.." && pwd)
pip=${PIP:-$repository/.venv/bin/pip}

# The same TVM as in this repository: artifacts load in no other.
mapfile -t packages < <(grep -oE '"apache-tvm(-ffi)?==[^"]+"' "$repository/pyproject.toml" | tr -d '"')
packages+=(ml-dtypes typing-extensions cloudpickle psutil "${@:4}")
platforms=(--platform "manylinux2014_$architecture")
for libc in 2_17 2_24 2_27 2_28; do
    platforms+=(--platform "manylinux_${libc}_$architecture")
done
"$pip" install --quiet --disable-pip-version-check --no-compile --no-deps --target "$folder" \
    --implementation cp --python-version "$python" --abi "cp${python/./}" --abi abi3 --abi none \
    --only-binary :all: "${platforms[@]}" "${packages[@]}"

cd "$folder"
rm -f tvm/lib/libtvm_compiler.so
[ -d nvidia ] || rm -f tvm/lib/libtvm_runtime_cuda.so # useless without the CUDA runtime
rm -rf tvm/{3rdparty,cmake,include,lib64,src,web} tvm_ffi/{3rdparty,cython,include,src} bin share
find . -name '*.pyi' -o -name '*.pyx' -o -name '*.pxi' | xargs -r rm
