#!/bin/sh
# Builds for aarch64 (NEON) on an x86 machine with Debian 12 and runs the tests of the ops under QEMU. Once, as root:
#   dpkg --add-architecture arm64 && apt-get update && apt-get install g++-aarch64-linux-gnu qemu-user-static
# `make arm-check` calls this; further arguments go to pytest. Everything it fetches and writes is in .aarch64.
set -eu
cd "$(dirname "$0")/../.."
top=$PWD/.aarch64
root=$top/root
mkdir -p "$top/debs" "$root"

for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v $tool > /dev/null || { echo "$0: $tool is missing; see the head of this file" >&2; exit 1; }
done

if [ ! -e "$root/usr/bin/python3.11" ]; then
  (cd "$top/debs" && for package in libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 libgomp1 liblzma5 \
      libpython3.11 libpython3.11-dev libpython3.11-minimal libpython3.11-stdlib libsqlite3-0 libssl3 libstdc++6 \
      libuuid1 python3.11 python3.11-minimal zlib1g; do
    apt-get download --quiet=2 $package:arm64
  done)
  for deb in "$top"/debs/*.deb; do dpkg -x "$deb" "$root"; done
fi
# The last release whose aarch64 wheels do without CUDA. pip would take this machine for the one to resolve for.
[ -d "$top/site/torch" ] || .venv/bin/pip install --quiet --target "$top/site" --no-deps --only-binary=:all: \
  --implementation cp --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --platform any \
  torch==2.10.0 filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec numpy \
  setuptools ninja pybind11 pytest iniconfig pluggy packaging pygments hypothesis sortedcontainers attrs safetensors

cat > "$top/python" << END
#!/bin/sh
export PYTHONHOME=$root/usr PYTHONPATH=$PWD:$top/site OMP_NUM_THREADS=2
exec qemu-aarch64-static -L $root $root/usr/bin/python3.11 "\$@"
END
chmod +x "$top/python"

# Python runs in QEMU, the compiler does not.
CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ CPATH=$root/usr/include HASHGRID_CUDA=0 PATH=$PWD/.venv/bin:$PATH \
  "$top/python" setup.py --quiet build_ext --inplace

failed=""
for file in $(grep -lx "pytestmark = pytest.mark.every_kernel" tests/test_*.py); do
  echo "== $file"
  # Left out: what compiles for this machine, or looks at every op's schema, which takes hours in QEMU.
  "$top/python" -m pytest --quiet -p no:cacheprovider "$file" \
    -k "not compile and not opcheck and not instruction_set" "$@" || failed="$failed $file"
done
if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
