# What every build needs. Abseil types appear in public signatures, so a program must use the abseil
# that the library was built with; see "ABI" in docs/building.md.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(PkgConfig QUIET)
# For sealed streams; features.cmake decides without it.
find_package(OpenSSL 3 QUIET COMPONENTS Crypto SSL)

# Reach the public headers, so consumers inherit them.
set(PENSTOCK_ABSL_PUBLIC any_invocable core_headers span status statusor strings time)
# Used by the sources only.
set(PENSTOCK_ABSL_PRIVATE cleanup cord flat_hash_map flat_hash_set inlined_vector str_format)
