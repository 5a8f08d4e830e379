#!/bin/sh
# The locks of the images anew, from pyproject.toml: what runs in each, with digests, for Python 3.11 and newer on Linux.
# `make lock` calls it; it asks the package index and writes infra/images/*.txt.
set -eu

cd "$(dirname "$0")/../.."
uv=$1
lock() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade "$@"
}

lock pyproject.toml --extra dicom --extra heic --extra lineage --extra privacy --extra signing -o infra/images/score-serve.txt
lock pyproject.toml --extra train --extra pretrained --extra dicom --extra heic --extra lineage --extra privacy --extra signing \
    -o infra/images/train.txt
printf "hatchling>=1.27\nuv>=0.5\n" | lock - -o infra/images/build.txt
