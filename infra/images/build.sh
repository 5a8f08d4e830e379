#!/bin/sh
# Build an image of this checkout by whatever is there: build.sh TARGET [TAG [FLAGS...]]   Targets: score-serve, train
#
# $BASE names another base image, e.g. python:3.12-slim-bookworm. Flags go to the builder as they are.
set -eu

target=${1:?target: score-serve or train}
tag=${2:-leukoray-$target}
[ $# -lt 2 ] && shift || shift 2
cd "$(dirname "$0")/../.."

if docker info >/dev/null 2>&1; then
    builder="docker build"
elif command -v podman >/dev/null && podman info >/dev/null 2>&1; then
    builder="podman build --format docker" # OCI's own format has no health check
elif command -v buildah >/dev/null; then
    builder="buildah build --format docker"
else
    echo "build: neither docker, podman nor buildah is here; apt-get install buildah" >&2
    exit 5
fi
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' pipeline/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# shellcheck disable=SC2086 - the builder is a command of several words
exec $builder --file infra/images/Dockerfile --target "$target" --tag "$tag" ${BASE:+--build-arg BASE="$BASE"} \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    --build-arg CREATED="$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$@" .
