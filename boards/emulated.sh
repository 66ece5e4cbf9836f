#!/usr/bin/env bash
# An aarch64 board without hardware: QEMU's user mode, a foreign Debian or Ubuntu tree, and the aarch64 wheels of TVM's
# runtime. Needs qemu-user-static, apt and pip, and neither root nor chroot nor binfmt_misc.
#
#   boards/emulated.sh build/board           makes it once, in about half a minute
#   QEMU_CPU=cortex-a72 build/board/python   is its Python, on a processor that QEMU emulates: an instruction that it
#                                            lacks (sdot on a Cortex-A72) ends the process with SIGILL
#
# Packages come from the sources that this machine's apt and pip use. PIP names the pip to ask; times measured on an
# emulated board mean nothing, its results are those of the real one.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
command -v qemu-aarch64-static >/dev/null || { echo "$0: install qemu-user-static" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "$0: needs a machine with apt" >&2; exit 1; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)
pip=${PIP:-$repository/.venv/bin/pip}

# Tests on several processes want it at the same time.
exec 9>"$folder/.lock"
flock 9
[ ! -e "$folder/.done" ] || exit 0
root=$folder/root apt=$folder/apt
rm -rf "$root" "$apt"
mkdir -p "$root" "$apt"/{lists,cache/archives}/partial
: >"$apt/status"

foreign=(
    -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Install-Recommends=false -o APT::Sandbox::User=
    -o Dir::State="$apt" -o Dir::State::Lists="$apt/lists" -o Dir::State::Status="$apt/status" -o Dir::Cache="$apt/cache"
    -o Debug::NoLocking=true -o Acquire::Languages=none
)
apt-get "${foreign[@]}" -qq update
version=$(apt-cache "${foreign[@]}" show python3-minimal | sed -n 's/^Version: \([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
apt-get "${foreign[@]}" -qq -y --download-only install "python$version" libstdc++6 >/dev/null
for package in "$apt"/cache/archives/*.deb; do
    dpkg -x "$package" "$root"
done

# The same TVM as in this repository, without its compiler: a board needs the runtime only.
tvm=$(grep -oE '"apache-tvm(-ffi)?==[^"]+"' "$repository/pyproject.toml" | tr -d '"')
platforms=()
for libc in 2_17 2_24 2_27 2_28; do
    platforms+=(--platform "manylinux_${libc}_aarch64")
done
site=$root/usr/lib/python3/dist-packages
# shellcheck disable=SC2086 # one requirement a word
"$pip" install --quiet --disable-pip-version-check --no-compile --target "$site" \
    --implementation cp --python-version "$version" --abi "cp${version/./}" --abi abi3 --abi none --only-binary :all: \
    "${platforms[@]}" --platform manylinux2014_aarch64 $tvm numpy psutil cloudpickle
rm -f "$site/tvm/lib/libtvm_compiler.so" "$site"/tvm/lib/libtvm_runtime_cuda.so
rm -rf "$apt"

cat >"$folder/python" <<EOF
#!/bin/sh
PYTHONHOME=$root/usr exec qemu-aarch64-static -L $root -0 "\$0" $root/usr/bin/python$version "\$@"
EOF
chmod +x "$folder/python"
"$folder/python" -c 'import tvm; assert tvm.base._RUNTIME_ONLY'
touch "$folder/.done"
