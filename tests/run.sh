#!/usr/bin/env bash
# Builds and tests everything; see usage() below. Ends with one line, "N passed, N failed, N skipped",
# of single tests over all stages, and with status 0 only when none failed.
set -u -o pipefail

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build_root=${PENSTOCK_BUILD_ROOT:-$tree/build}
default_stages=(release clang asan tsan demo)
all_stages=("${default_stages[@]}" fuzz vm)
stages=()

usage() {
  cat <<USAGE
usage: tests/run.sh [--quick] [STAGE...]

Installs missing Debian packages (as root or through sudo; tests that need optional ones are skipped
where it cannot), builds, tests, prints a summary.
  release  g++, optimised: every test, the installed package, the style checks
  clang    clang 14: everything compiles, the unit tests pass
  asan     AddressSanitizer and UndefinedBehaviorSanitizer: every test of the library and the examples
  tsan     ThreadSanitizer: the same
  demo     examples/demo.sh --quick, with a check of its figures
  fuzz     libFuzzer goes on from each corpus, a minute at most
  vm       the engines, sockets and RDMA devices on Linux 6.1 and 6.12, in an emulated machine
Without a STAGE all but fuzz and vm run, in this order; --quick runs release alone.
Builds go to \$PENSTOCK_BUILD_ROOT, build/ in the tree unless set.
USAGE
}

while [ $# -gt 0 ]; do
  case $1 in
    --quick) stages+=(release) ;;
    -h|--help) usage; exit 0 ;;
    *)
      if [[ " ${all_stages[*]} " != *" $1 "* ]]; then
        echo "tests/run.sh: unknown argument '$1'" >&2
        usage >&2
        exit 2
      fi
      stages+=("$1")
      ;;
  esac
  shift
done
[ ${#stages[@]} -gt 0 ] || stages=("${default_stages[@]}")

# shellcheck source=../cmake/deps.sh
. "$tree/cmake/deps.sh"
ensure_packages "${PACKAGES_TESTS[@]}" -- "${PACKAGES_TESTS_MORE[@]}" || exit 1
use_compiler_cache

jobs=$(nproc)
# Most tests wait longer than they work.
test_jobs=$((2 * jobs))
cd "$tree" || exit 1

# A failure outside any test, such as a build that breaks, is recorded for the summary as one.
record_failure() {
  printf '%s\n' "$2" >> "$build_root/$1/results/stage_failures"
}

# A stage that this machine cannot run is recorded as one skipped test.
record_skip() {
  printf '%s\n' "$2" >> "$build_root/$1/results/stage_skips"
}

# start_stage NAME: an empty results folder, from which the summary counts.
start_stage() {
  local results=$build_root/$1/results
  rm -rf "$results"
  mkdir -p "$results"
  echo
  echo "== $1"
}

# build_stage NAME [PRESET [target...]]: configures by a preset, NAME's own unless given, and builds.
build_stage() {
  local name=$1 preset=${2:-$1} targets=("${@:3}")
  local dir=$build_root/$preset log=$build_root/$name/build.log
  if ! cmake --preset "$preset" -B "$dir" > "$log" 2>&1 ||
      ! cmake --build "$dir" -j "$jobs" ${targets[0]+--target "${targets[@]}"} >> "$log" 2>&1; then
    grep -aE -m 20 -A 5 'error: |Error |^FAILED' "$log" || tail -40 "$log"
    record_failure "$name" "the build (log: $log)"
    return 1
  fi
}

# test_stage NAME [command prefix...] -- [ctest options]
test_stage() {
  local name=$1 dir=$build_root/$1 prefix=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    prefix+=("$1")
    shift
  done
  shift
  # Its status is in the report, from which the summary counts.
  "${prefix[@]}" ctest --test-dir "$dir" -j "$test_jobs" --output-on-failure --no-tests=error \
    --output-junit "$dir/results/ctest.xml" "$@" 2>&1 | tee "$dir/test.log" |
    grep -avE '^ *Start +[0-9]+:|^Internal ctest|^Test project'
  if [ ! -s "$dir/results/ctest.xml" ]; then
    record_failure "$name" "ctest wrote no report"
  fi
}

stage_release() {
  build_stage release && test_stage release --
}

stage_clang() {
  if ! command -v clang++-14 >/dev/null; then
    record_skip clang "clang-14 is not installed"
    return
  fi
  build_stage clang && test_stage clang -- -L unit
}

stage_asan() {
  build_stage asan && test_stage asan --
}

# ThreadSanitizer of g++ 12 cannot place its memory where the kernel randomises addresses by more
# than 28 bits (vm.mmap_rnd_bits, 32 on some kernels): then the tests run without randomisation.
stage_tsan() {
  build_stage tsan || return
  local probe=$build_root/tsan/tests/penstock_unit_tests
  if "$probe" --gtest_list_tests >/dev/null 2>&1; then
    test_stage tsan --
  elif setarch -R "$probe" --gtest_list_tests >/dev/null 2>&1; then
    echo "addresses are randomised too widely for ThreadSanitizer: running under setarch -R"
    test_stage tsan setarch -R --
  elif "$probe" --gtest_list_tests 2>&1 | grep -q 'unexpected memory mapping'; then
    record_skip tsan "ThreadSanitizer cannot map its memory and setarch -R is not permitted"
  else
    record_failure tsan "the unit tests do not start"
  fi
}

# Each kernel gives its tests at most so many seconds.
vm_limit=420

# in_vm NAME KERNEL OPTIONS... -- COMMAND...: runs it there, with its output in vm/NAME.log.
in_vm() {
  local name=$1 kernel=$2 status log=$build_root/vm/$1.log
  shift 2
  echo "-- $name"
  tests/vm/run.py "--kernel=$kernel" "--cache=$build_root/vm/kernels" \
    "--share=$build_root/vm/results" "$@" | tee "$log"
  status=${PIPESTATUS[0]}
  case $status in
    0) ;;
    77) record_skip vm "$name: $(sed -n 's/^skipped: //p' "$log")" ;;
    *) record_failure vm "$name: status $status" ;;
  esac
}

stage_vm() {
  local kernel tests=$build_root/release/tests
  local results=$build_root/vm/results cache=$build_root/vm/kernels
  if ! ensure_packages "${PACKAGES_VM[@]}"; then
    record_skip vm "packages are missing: ${PACKAGES_VM[*]}"
    return
  fi
  build_stage vm release penstock_unit_tests penstock_conformance_tests live_migration \
    penstock_rdma_tests rdma_pingpong rdma_put bulk_transfer || return
  tests/vm/run_test.py "--cache=$cache" "--report=$results/vm.xml"
  [ -s "$results/vm.xml" ] || record_failure vm "tests/vm/run_test.py wrote no report"
  for kernel in 6.1 6.12; do
    in_vm "linux-$kernel" "$kernel" "--limit=$vm_limit" -- \
      tests/vm/engines.sh "$tests" "$results/linux-$kernel"
    in_vm "linux-$kernel-rdma" "$kernel" --rdma --limit=300 -- \
      "$tests/penstock_rdma_tests" --gtest_filter='*Machine*' --gtest_brief=1 \
      "--gtest_output=xml:$results/linux-$kernel-rdma.xml"
    in_vm "linux-$kernel-examples" "$kernel" --rdma --limit=300 -- tests/vm/examples_test.py \
      "--programs=$build_root/release/examples" "--report=$results/linux-$kernel-examples.xml"
    # What is not allowed is told by one packet, and whom it does not reach hears of retries.
    in_vm "linux-$kernel-lossy" "$kernel" --rdma --limit=300 -- tests/vm/lossy.sh \
      "$tests/penstock_rdma_tests" --gtest_brief=1 \
      '--gtest_filter=*LaneScenarioTest*Machine:*EndpointScenarioTest*Machine:*SealedScenarioTest*Machine:-*ALostWire*:*WhatIsNotAllowed*' \
      "--gtest_output=xml:$results/linux-$kernel-lossy.xml"
  done
}

stage_fuzz() {
  if ! command -v clang++-14 >/dev/null; then
    record_skip fuzz "clang-14 is not installed"
    return
  fi
  build_stage fuzz && test_stage fuzz -- -L fuzz
}

stage_demo() {
  local results=$build_root/demo/results dir=$build_root/demo
  if [ -f "$build_root/release/build.ninja" ]; then
    dir=$build_root/release
  fi
  examples/demo.sh --quick --build "$dir" --json "$results/demo.json" || record_failure demo "examples/demo.sh"
  python3 tests/check_demo.py "$results/demo.json" "$results/demo.xml"
}

for stage in "${stages[@]}"; do
  start_stage "$stage"
  started=$SECONDS
  "stage_$stage"
  echo "$((SECONDS - started)) s"
done
python3 tests/summary.py "$build_root" "${stages[@]}"
