#!/bin/sh
# Make the environment of a client that tests run unchanged, and print its Python: clients.sh NAME
#
# NAME is one of infra/clients/*.txt. Clients contradict this package, Ray and one another in what they need, so each has
# an environment of its own. It is kept in the temp folder, and made anew where the file or the Python has changed.
# $PYTHON is the interpreter to make it from (default python3), $INSTALL_FLAGS goes to the installer.
set -eu

wanted="$(cd "$(dirname "$0")" && pwd)/clients/$1.txt"
python=${PYTHON:-python3}
flags=${INSTALL_FLAGS:-}
state=$({ cat "$wanted"; "$python" -VV; } | sha256sum | cut -c1-12)
venv="${TMPDIR:-/tmp}/leukoray-$(id -u)/clients/$1-$state"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

if [ ! -e "$venv/.made" ]; then
    echo "clients: making $venv" >&2
    # uv where the interpreter's environment has it: a tenth of the time. No cache, nothing outside the folder.
    uv=$(dirname "$(command -v "$python")")/uv
    if [ ! -x "$uv" ] || ! "$python" -m venv --clear --without-pip "$venv" ||
        ! "$uv" pip install --quiet --no-cache --python "$venv/bin/python" $flags -r "$wanted"; then
        "$python" -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --quiet $flags -r "$wanted"
    fi >&2
    touch "$venv/.made"
fi
echo "$venv/bin/python"
