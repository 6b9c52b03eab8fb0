#!/usr/bin/env bash
# push_images.sh DOCKER REGISTRY: push both images, and print what a cluster's profile says of them.
#
# The tag is the version and the revision, so it names one build: a registry may let a tag be moved, and nodes keep what
# they pulled under it. So the profile names the digest too, which Kubernetes then pulls by.
set -euo pipefail

docker=$1 registry=${2%/}
if [ -z "$registry" ]; then
  echo "error: name the registry: make push REGISTRY=registry.example.org/team" >&2
  exit 2
fi
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/mdpr/__init__.py)
revision=$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
  echo "error: changes that are not committed: the tag would name another build; commit them first" >&2
  exit 2
fi
lines=()
for target in cpu gpu; do
  image=$registry/mdpr-$target:$version-$revision
  "$docker" tag "mdpr-$target:latest" "$image"
  "$docker" push --quiet "$image" >&2
  digest=$("$docker" inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$image" |
    grep --fixed-strings "$registry/mdpr-$target@" | head -n 1 | cut -d@ -f2)
  lines+=("image_$target: $image@$digest")
done
echo "# in the cluster's profile (--cluster):"
printf '%s\n' "${lines[@]}"
