#!/usr/bin/env bash
# Builds the images of the chart with buildah or docker: tools/images.sh [gateway|operator|engine]...
#   BASE=IMAGE       what gateway and operator stand on (python:3.12-slim). BASE=debian makes one from Debian's packages with
#                    debootstrap and buildah, where no registry can be reached.
#   TAG=NAME         of the images: andes-gateway:TAG (the version)
#   BUILD_FLAGS=...  more flags for the builder, for instance --volume or --build-arg for an index of packages
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "images: $*" >&2; exit 1; }

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(gateway operator engine)
tag=${TAG:-$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' andes_sglang/__init__.py)}
if command -v buildah >/dev/null; then
    build=(buildah build --layers)
elif docker info >/dev/null 2>&1; then
    build=(docker build)
else
    fail "neither buildah nor a docker daemon is here: install buildah"
fi
for part in "${parts[@]}"; do
    [ -f "charts/images/$part.Dockerfile" ] || fail "$part: choose gateway, operator or engine"
done

if [ "${BASE:-}" = debian ]; then
    [ "${build[0]}" = buildah ] && command -v debootstrap >/dev/null || fail "BASE=debian needs buildah and debootstrap, as root"
    BASE=localhost/andes-base:bookworm
    if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
        root=$(mktemp -d)
        trap 'rm -rf "$root"' EXIT
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,tini bookworm "$root" >/dev/null
        rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$root" / >/dev/null
        buildah commit --quiet --rm "$container" "$BASE" >/dev/null
    fi
fi

read -ra flags <<<"${BUILD_FLAGS:-}"
for part in "${parts[@]}"; do
    base=()
    [ "$part" = engine ] || [ -z "${BASE:-}" ] || base=(--build-arg "BASE=$BASE")
    "${build[@]}" "${base[@]}" "${flags[@]}" -f "charts/images/$part.Dockerfile" -t "andes-$part:$tag" .
    echo "andes-$part:$tag"
done
