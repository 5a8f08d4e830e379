#!/bin/sh
# An environment of the lowest or the newest versions that pyproject.toml allows: bounds.sh lowest|newest VENV UV
#
# Writes to VENV and uv's cache only. Lowest: of what leukoray and its extras name themselves; what those need in turn,
# and the tools of the tests, are the newest that go with it. $PYTHON and $INSTALL_FLAGS as for setup.sh.
set -eu

which=$1
venv=$2
uv=$3
flags=${INSTALL_FLAGS:-}
cd "$(dirname "$0")/.."

"$uv" venv --quiet --clear --python "${PYTHON:-python3}" "$venv"
python="$venv/bin/python"
install() { "$uv" pip install --quiet --python "$python" $flags "$@"; }

case "$which" in
lowest)
    # the extras that the tests need, as pyproject.toml names them: `leukoray[a,b]` among those of `test`
    extras=$("$python" -c '
import re, tomllib
names = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"]
print(",".join(re.fullmatch(r"leukoray\[(.*)\]", name)[1] for name in names if name.startswith("leukoray[")))')
    install --resolution lowest-direct -e ".[$extras]"
    install -e ".[test]"
    ;;
newest) install --upgrade -e ".[test]" ;;
*)
    echo "bounds: lowest or newest, not '$which'" >&2
    exit 2
    ;;
esac
"$uv" pip freeze --quiet --python "$python" --exclude-editable >"$venv/versions.txt"
echo "bounds: $which versions in $venv, listed in versions.txt there"
