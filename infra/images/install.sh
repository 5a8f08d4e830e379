#!/bin/sh
# Inside a build: the packages of an image's lock and the wheel of this checkout into /opt/leukoray. install.sh IMAGE
#
# With $TORCH_INDEX torch and torchvision come from that index, in the lock's versions; its builds have other digests
# than PyPI's, so these two alone are installed without, and nothing that only CUDA needs.
set -eu

lock=$(dirname "$0")/$1.txt
python3 -m venv /opt/leukoray
pip() { /opt/leukoray/bin/python -m pip --quiet "$@"; }

if [ -n "${TORCH_INDEX:-}" ]; then
    for name in torch torchvision; do
        version=$(sed -n "s/^$name==\([^ ;]*\).*/\1/p" "$lock")
        pip install --no-deps --no-compile --index-url "$TORCH_INDEX" "$name==$version"
    done
    # an entry of the lock begins at the margin, its digests are indented
    awk '/^[a-zA-Z]/ { left_out = /^(torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==/ } !left_out' "$lock" >/tmp/lock.txt
    lock=/tmp/lock.txt
fi
pip install --no-deps --no-compile --require-hashes -r "$lock"
pip install --no-deps --no-compile --no-index /wheels/*.whl
rm -f /tmp/lock.txt
/opt/leukoray/bin/python -m pip --quiet uninstall --yes setuptools || true
/opt/leukoray/bin/python -m pip check
/opt/leukoray/bin/python -m pip --quiet uninstall --yes pip
[ "$1" = score-serve ] || /opt/leukoray/bin/python -m compileall -q -j 0 -x '/tests?/' /opt/leukoray/lib || true
