# Debian packages that Penstock needs, and how to get them. Sourced by tests/run.sh and
# examples/demo.sh: `ensure_packages "${PACKAGES_BUILD[@]}" -- "${PACKAGES_BUILD_MORE[@]}"`.

# To build the library and the example programs.
PACKAGES_BUILD=(g++ cmake ninja-build pkg-config libabsl-dev python3)
# What more of them is built with these: io_uring, sealed streams, RDMA devices, certificates for the
# demo. ccache is there for the second build.
PACKAGES_BUILD_MORE=(liburing-dev libssl-dev libibverbs-dev openssl ccache)
# To build and run the tests.
PACKAGES_TESTS=("${PACKAGES_BUILD[@]}" libgtest-dev)
# Tests that are skipped without these, and say so: the second compiler, the format check, peers to
# talk to and to be compared with, the proofs of the models.
PACKAGES_TESTS_MORE=("${PACKAGES_BUILD_MORE[@]}" clang-14 clang-format-14 libclang-rt-14-dev
  libbenchmark-dev libasio-dev libuv1-dev libgrpc29 golang-go
  golang-google-grpc-dev curl wrk spin)
# To run tests under older kernels in an emulated machine; the kernels themselves are fetched by
# tests/vm/run.py and not installed.
PACKAGES_VM=(qemu-system-x86 busybox-static kmod cpio iproute2 ibverbs-providers ibverbs-utils)

# missing_packages PACKAGE...: those that are not installed, one a line.
missing_packages() {
  local package
  for package in "$@"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
      echo "$package"
    fi
  done
}

# install_packages PACKAGE...: as root or through sudo, as far as that goes.
install_packages() {
  local package install=(env DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends) as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || return 0
    as_root=(sudo)
  fi
  echo "Installing missing packages: $*"
  "${as_root[@]}" apt-get update -qq || return 0
  "${as_root[@]}" "${install[@]}" "$@" > /dev/null && return
  # One that this distribution does not have keeps the others from being installed with it.
  for package in "$@"; do
    "${as_root[@]}" "${install[@]}" "$package" > /dev/null || true
  done
}

# ensure_packages REQUIRED... [-- OPTIONAL...]: installs those that are missing, and says which. Runs
# no package manager when nothing is missing. Where it cannot install, for want of root, of a network
# or of the package, it says so with the command to run by hand: it returns 1 when a required one is
# missing, and goes on without the optional ones.
ensure_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "Not a Debian system: expecting what these Debian packages hold: ${*/#--/and, optional,}"
    return 0
  fi
  local word required=() optional=() missing
  while [ $# -gt 0 ]; do
    word=$1
    shift
    if [ "$word" = -- ]; then
      optional=("$@")
      break
    fi
    required+=("$word")
  done
  mapfile -t missing < <(missing_packages "${required[@]}" "${optional[@]}")
  if [ ${#missing[@]} -eq 0 ]; then
    return 0
  fi
  install_packages "${missing[@]}"
  mapfile -t missing < <(missing_packages "${required[@]}")
  if [ ${#missing[@]} -gt 0 ]; then
    echo "Missing packages that cannot be installed from here. As root:" >&2
    echo "  apt-get install ${missing[*]}" >&2
    return 1
  fi
  mapfile -t missing < <(missing_packages "${optional[@]}")
  if [ ${#missing[@]} -gt 0 ]; then
    echo "Going on without what needs these packages, which cannot be installed from here. As root:"
    echo "  apt-get install ${missing[*]}"
  fi
}

# Compiles through ccache when it is there, in this and all nested builds.
use_compiler_cache() {
  if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER="${CMAKE_CXX_COMPILER_LAUNCHER-ccache}"
  fi
}
