# Debian packages that Penstock needs, and how to get them. Sourced by tests/run.sh and
# examples/demo.sh: `ensure_packages "${PACKAGES_BUILD[@]}"`.

# To build the library and the example programs. ccache is there for the second build.
PACKAGES_BUILD=(g++ cmake ninja-build pkg-config ccache libabsl-dev liburing-dev libssl-dev
  libibverbs-dev openssl python3)
# To build and run the tests and benchmarks, the second compiler and the format check among them.
PACKAGES_TESTS=("${PACKAGES_BUILD[@]}" clang-14 clang-format-14 libclang-rt-14-dev libgtest-dev
  libbenchmark-dev libasio-dev libuv1-dev libgrpc29 curl wrk spin)
# To run tests under older kernels in an emulated machine; the kernels themselves are fetched by
# tests/vm/run.py and not installed.
PACKAGES_VM=(qemu-system-x86 busybox-static kmod cpio iproute2 ibverbs-providers ibverbs-utils)

# Installs those of the named packages that are missing, as root or through sudo, and says which.
# Runs no package manager when nothing is missing. Returns 1, with the command to run by hand, when
# it cannot install.
ensure_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "Not a Debian system: expecting what these Debian packages hold: $*"
    return 0
  fi
  local package missing=()
  for package in "$@"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
      missing+=("$package")
    fi
  done
  if [ ${#missing[@]} -eq 0 ]; then
    return 0
  fi

  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Missing packages, and neither root nor sudo to install them. As root:" >&2
      echo "  apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  echo "Installing missing packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
}

# Compiles through ccache when it is there, in this and all nested builds.
use_compiler_cache() {
  if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER="${CMAKE_CXX_COMPILER_LAUNCHER-ccache}"
  fi
}
