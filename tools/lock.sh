#!/usr/bin/env bash
# Makes the pinned closures in requirements/ from their .in files. Needs a package index; names none.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.setup/lock
[ -x "$tools/bin/uv" ] || { "${PYTHON:-python3}" -m venv "$tools" && "$tools/bin/pip" install --quiet uv; }
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS
options=(pip compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links)

overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
sed -e '/^#/d' -e "s/\$/ ; python_version < '3'/" requirements/cpu.drop >"$overrides"
# torch: the newest with a CPU build; transformers: on which the older releases of SGLang run, too.
printf '%s\n' torch==2.13.0 transformers==5.12.1 tokenizers==0.22.2 >>"$overrides"
"$tools/bin/uv" "${options[@]}" --python-version 3.11 --override "$overrides" requirements/cpu.in |
    sed 's/^\(torch==[0-9.]*\)+cpu$/\1/' >requirements/cpu.txt.new
"$tools/bin/uv" "${options[@]}" --python-version 3.12 --python-platform x86_64-manylinux_2_35 requirements/gpu.in \
    >requirements/gpu.txt.new
# Goes into the same .venv as the CPU closure.
"$tools/bin/uv" "${options[@]}" --python-version 3.11 -c requirements/cpu.txt.new requirements/mutation.in \
    >requirements/mutation.txt.new
# The site of the documentation, in an environment of its own.
"$tools/bin/uv" "${options[@]}" --python-version 3.11 requirements/docs.in >requirements/docs.txt.new
for name in cpu gpu mutation docs; do
    mv "requirements/$name.txt.new" "requirements/$name.txt"
    echo "requirements/$name.txt: $(wc -l <"requirements/$name.txt") packages"
done
