#!/usr/bin/env bash
# An aarch64 board without hardware: QEMU's user mode, a foreign Debian or Ubuntu tree, and the aarch64 wheels of TVM's
# runtime. Needs qemu-user-static, apt and pip, and neither root nor chroot nor binfmt_misc.
#
#   board/emulated.sh build/board           makes it once, in about half a minute
#   QEMU_CPU=cortex-a72 build/board/python   is its Python, on a processor that QEMU emulates: an instruction that it
#                                            lacks (sdot on a Cortex-A72) ends the process with SIGILL
#
# Packages come from the sources that this machine's apt and pip use. Times measured on an emulated board mean nothing;
# its results are those of the real one.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
command -v qemu-aarch64-static >/dev/null || { echo "$0: install qemu-user-static" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "$0: needs a machine with apt" >&2; exit 1; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)

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

"$repository/board/runtime_package.sh" "$root/usr/lib/python3/dist-packages" "$version" aarch64 numpy
rm -rf "$apt"

cat >"$folder/python" <<EOF
#!/bin/sh
PYTHONHOME=$root/usr exec qemu-aarch64-static -L $root -0 "\$0" $root/usr/bin/python$version "\$@"
EOF
chmod +x "$folder/python"
"$folder/python" -c 'import tvm; assert tvm.base._RUNTIME_ONLY'
touch "$folder/.done"
