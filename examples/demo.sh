#!/usr/bin/env bash
# A short tour of Penstock with real figures: installs what is missing, builds, runs. See --help.
set -eu -o pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(dirname "$examples")
build=${PENSTOCK_BUILD_ROOT:-$tree/build}/demo
tour=()

usage() {
  cat <<USAGE
usage: examples/demo.sh [--quick] [--json FILE] [--build DIR]

Installs missing Debian packages (as root or through sudo; goes on without the optional ones where it
cannot), builds the library and its examples, and shows them at work: echo on each engine, a bulk transfer, thousands of idle connections, connections
that move between engines and threads; and sealed.
  --quick      shorter: a few seconds a step
  --json FILE  write the figures to FILE too
  --build DIR  build there (default: build/demo in the tree)
USAGE
}

while [ $# -gt 0 ]; do
  case $1 in
    --quick) tour+=(--quick) ;;
    --json|--build)
      [ $# -ge 2 ] || { echo "examples/demo.sh: $1 needs a value" >&2; exit 2; }
      case $1 in
        --json) tour+=(--json "$2") ;;
        --build) build=$2 ;;
      esac
      shift
      ;;
    -h|--help) usage; exit 0 ;;
    *) echo "examples/demo.sh: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

# shellcheck source=../cmake/deps.sh
. "$tree/cmake/deps.sh"
ensure_packages "${PACKAGES_BUILD[@]}" -- "${PACKAGES_BUILD_MORE[@]}"
use_compiler_cache

echo "Building in $build"
mkdir -p "$build"
log=$build/demo-build.log
if ! {
  # A tree that was configured before, with its tests perhaps, is taken as it is.
  { [ -f "$build/build.ninja" ] ||
      (cd "$tree" && cmake --preset release -B "$build" -DPENSTOCK_TESTS=OFF -DPENSTOCK_BENCH=OFF); } &&
    cmake --build "$build" -j "$(nproc)" --target penstock_examples
} > "$log" 2>&1; then
  tail -30 "$log" >&2
  echo "examples/demo.sh: the build failed, see $log" >&2
  exit 1
fi
exec python3 "$examples/demo.py" --programs "$build/examples" "${tour[@]}"
