#!/bin/sh
# Bills of materials, CycloneDX 1.6, of what is installed and of the images' locks: sbom.sh VENV OUT UVX
#
# Made by cyclonedx-bom in an environment of its own (uv's cache), which checks them against the schema.
set -eu

venv=$1
out=$2
uvx=$3
cd "$(dirname "$0")/.."

mkdir -p "$out"
bom() { "$uvx" --quiet --from 'cyclonedx-bom>=7' cyclonedx-py "$@" --spec-version 1.6 --output-format JSON --validate; }

bom environment "$venv/bin/python" --pyproject pyproject.toml --mc-type application --output-file "$out/installed.cdx.json"
for lock in infra/images/*.txt; do
    grep -qs -e '--hash=sha256:' "$lock" || continue
    bom requirements "$lock" --output-file "$out/$(basename "$lock" .txt).cdx.json"
done
ls "$out"/*.cdx.json
