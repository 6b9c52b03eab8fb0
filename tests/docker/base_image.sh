#!/usr/bin/env bash
# BASE_IMAGE for a machine that reaches no image registry: Debian's own Python, made by debootstrap (as root).
#
#   tests/docker/base_image.sh [NAME:TAG]     default: mdpr-base:bookworm; prints the name; keeps one that is there
#
# The mirror is the first one in the machine's apt configuration, or MIRROR; it stays out of the image.
set -euo pipefail

IMAGE=${1:-mdpr-base:bookworm}
SUITE=bookworm
PACKAGES=python3,python3-venv,ca-certificates,git

if docker image inspect "$IMAGE" >/dev/null 2>&1; then
  echo "$IMAGE"
  exit
fi
command -v debootstrap >/dev/null || { echo "error: apt-get install debootstrap" >&2; exit 2; }
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $SUITE" | head -n 1)}
[ -n "$mirror" ] || { echo "error: apt knows no mirror of $SUITE: set MIRROR" >&2; exit 2; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$folder" "$mirror" >&2
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/* "$folder"/var/log/* \
  "$folder"/debootstrap
: >"$folder/etc/apt/sources.list"  # the image installs nothing more, and must not keep the address of this mirror
# What the builder's own name server and host name were says nothing inside a container.
rm -f "$folder/etc/resolv.conf" "$folder/etc/hostname"
tar -C "$folder" --numeric-owner -c . | docker import --change 'CMD ["python3"]' - "$IMAGE" >&2
echo "$IMAGE"
