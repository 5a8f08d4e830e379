#!/bin/sh
# Make the environment of a client that tests run unchanged, and print its Python: clients.sh NAME
#
# NAME is one of infra/clients/*.txt. Clients contradict this package, Ray and one another in what they need, so each has
# an environment of its own. It is kept in the temp folder, and made anew where the file or the Python has changed.
# What has a folder beside its file is of npm: node comes with the file, the packages by the folder's lock. Exit 3: from
# npm's registry nothing is to be had.
# $PYTHON is the interpreter to make it from (default python3), $INSTALL_FLAGS goes to the installer.
set -eu

wanted="$(cd "$(dirname "$0")" && pwd)/clients/$1.txt"
of_npm=${wanted%.txt}
python=${PYTHON:-python3}
flags=${INSTALL_FLAGS:-}
state=$({ cat "$wanted" "$of_npm"/*.json 2>/dev/null || true; "$python" -VV; } | sha256sum | cut -c1-12)
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
    if [ -d "$of_npm" ]; then
        cp "$of_npm"/*.json "$venv"
        cd "$venv"
        if ! PATH="$venv/bin:$PATH" npm ci --silent --ignore-scripts --fetch-retries 1 --cache "$venv/.npm" >&2; then
            echo "clients: npm ci of $of_npm failed: is npm's registry reached from here?" >&2
            exit 3
        fi
        rm -rf "$venv/.npm"
    fi
    touch "$venv/.made"
fi
echo "$venv/bin/python"
