#!/bin/sh
# Inside a build: the packages of an image's lock and the wheel of this checkout into /opt/leukoray. install.sh IMAGE
#
# With $TORCH_INDEX torch and torchvision come from that index, in the lock's versions; its builds have other digests
# than PyPI's, so these two alone are installed without, and nothing that only CUDA needs.
set -eu

lock=$(dirname "$0")/$1.txt
python3 -m venv --without-pip /opt/leukoray
[ -z "${PIP_INDEX_URL:-}" ] || export UV_INDEX_URL="$PIP_INDEX_URL"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="$PIP_CERT"
export UV_NO_CACHE=1 UV_LINK_MODE=copy UV_HTTP_TIMEOUT=300
# score-serve compiles what it keeps, in slim.sh
[ "$1" = score-serve ] || export UV_COMPILE_BYTECODE=1
install() { /build/bin/uv pip install --quiet --python /opt/leukoray/bin/python --no-deps "$@"; }

if [ -n "${TORCH_INDEX:-}" ]; then
    for name in torch torchvision; do
        version=$(sed -n "s/^$name==\([^ ;]*\).*/\1/p" "$lock")
        install --index-url "$TORCH_INDEX" "$name==$version"
    done
    # an entry of the lock begins at the margin, its digests are indented
    awk '/^[a-zA-Z]/ { left_out = /^(torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==/ } !left_out' "$lock" >/tmp/lock.txt
    lock=/tmp/lock.txt
fi
install --require-hashes -r "$lock"
install --no-index /wheels/*.whl
rm -f /tmp/lock.txt
[ -n "${TORCH_INDEX:-}" ] || /build/bin/uv pip check --quiet --python /opt/leukoray/bin/python
