#!/bin/sh
# Install the system packages that groups of tests want: packages.sh GROUP...   Groups: browser,
# ceph, images, kubernetes, monitoring, slurm.
#
# Only where apt-get and root are there. It never fails: where it cannot install it says so in a line, and the tests
# that want the package are skipped and named at the end of the run.
set -u

apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=30 "$@" >/dev/null; }

for group in "$@"; do
    case $group in
    browser) packages=chromium program=chromium ;;
    ceph) packages="ceph-mon ceph-osd radosgw ceph-common" program=radosgw ;;
    kubernetes) packages=kubernetes-client program=kubectl ;;
    images) packages="buildah mmdebstrap iproute2" program=buildah ;;
    monitoring) packages=prometheus program=promtool ;;
    slurm) packages="slurmctld slurmd munge slurm-client iproute2" program=slurmctld ;;
    *) echo "packages: no group '$group'; groups: browser, ceph, images, kubernetes, monitoring, slurm" >&2 && exit 2 ;;
    esac
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null && continue
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "packages: installing $packages ($group)"
        # shellcheck disable=SC2086 - one word a package
        { apt update && apt install -y --no-install-recommends $packages; } && continue
    fi
    echo "packages: $packages ($group) is missing and could not be installed here; tests that want it are left out"
done
