#!/bin/sh
# Build the Python environment of a checkout: setup.sh VENV [EXTRA[,EXTRA]]
#
# Writes to VENV and the temp folder only. $PYTHON is the interpreter to build it from (default python3);
# $INSTALL_FLAGS goes to the installer, e.g. '--index-url URL' of a mirror or of CPU-only builds of torch.
set -eu

venv=$1
extras=${2:+[$2]}
python=${PYTHON:-python3}
flags=${INSTALL_FLAGS:-}

refuse() {
    echo "setup: $1" >&2
    exit 5
}

command -v "$python" >/dev/null || refuse "$python is missing; install Python 3.11 or newer: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    refuse "$("$python" --version) is too old; name a Python of 3.11 or newer: make PYTHON=python3.12 ..."

cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: making $venv from $("$python" --version)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        refuse "$python cannot make environments; apt-get install python3-venv, or name another: make PYTHON=..."
    "$python" -m venv --clear "$venv"
fi

# uv installs in a minute what takes pip five. Its cache sits in VENV so that files are linked, not copied.
# Bytecode is compiled here, once: each of the dozen processes of a Ray job would otherwise spend seconds on it.
echo "setup: installing packages into $venv (torch alone is large: minutes, once)"
"$venv/bin/python" -m pip install --quiet uv || echo "setup: uv is not to be had; pip takes its place"
if [ -x "$venv/bin/uv" ] &&
    UV_CACHE_DIR="$venv/.uv-cache" "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" $flags -e ".$extras"; then
    rm -rf "$venv/.uv-cache"
else
    rm -rf "$venv/.uv-cache"
    "$venv/bin/python" -m pip install --quiet --compile $flags -e ".$extras"
fi
