# Installation: the library, its headers, a CMake package and a pkg-config file. The installed tree
# is relocatable.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/penstock")

install(TARGETS penstock
  EXPORT penstockTargets
  LIBRARY
    DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    COMPONENT runtime NAMELINK_COMPONENT dev
  ARCHIVE
    DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    COMPONENT dev)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/penstock"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  COMPONENT dev
  FILES_MATCHING PATTERN "*.h")
install(EXPORT penstockTargets
  NAMESPACE penstock::
  DESTINATION "${package_dir}"
  COMPONENT dev)

# A static library leaves finding liburing, OpenSSL and libibverbs to the consumer's link.
get_target_property(type penstock TYPE)
set(PENSTOCK_NEEDS_LIBURING OFF)
set(PENSTOCK_NEEDS_OPENSSL OFF)
set(PENSTOCK_NEEDS_LIBIBVERBS OFF)
if(type STREQUAL "STATIC_LIBRARY")
  set(PENSTOCK_NEEDS_LIBURING ${PENSTOCK_HAVE_URING})
  set(PENSTOCK_NEEDS_OPENSSL ${PENSTOCK_HAVE_SECURE})
  set(PENSTOCK_NEEDS_LIBIBVERBS ${PENSTOCK_HAVE_VERBS})
endif()
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/penstockConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/penstockConfig.cmake"
  INSTALL_DESTINATION "${package_dir}"
  NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may break the interface.
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/penstockConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES
  "${PROJECT_BINARY_DIR}/penstockConfig.cmake"
  "${PROJECT_BINARY_DIR}/penstockConfigVersion.cmake"
  DESTINATION "${package_dir}"
  COMPONENT dev)

# pkg-config. A consumer of the static library links what the library links, so the private
# requirements are public then; Libs.private would need every consumer to say --static.
list(TRANSFORM PENSTOCK_ABSL_PUBLIC PREPEND absl_ OUTPUT_VARIABLE requires)
list(TRANSFORM PENSTOCK_ABSL_PRIVATE PREPEND absl_ OUTPUT_VARIABLE requires_private)
if(PENSTOCK_HAVE_URING)
  list(APPEND requires_private "liburing >= 2.3")
endif()
if(PENSTOCK_HAVE_SECURE)
  list(APPEND requires_private "libssl >= 3" "libcrypto >= 3")
endif()
if(PENSTOCK_HAVE_VERBS)
  list(APPEND requires_private "libibverbs >= 1.14")
endif()
if(type STREQUAL "SHARED_LIBRARY")
  set(PENSTOCK_PC_CFLAGS " -DPENSTOCK_SHARED")
  set(PENSTOCK_PC_LIBS "")
else()
  set(PENSTOCK_PC_CFLAGS "")
  set(PENSTOCK_PC_LIBS " -pthread")
  list(APPEND requires ${requires_private})
  set(requires_private "")
endif()
if(NOT PENSTOCK_HAVE_SECURE)
  string(APPEND PENSTOCK_PC_CFLAGS " -DPENSTOCK_NO_SECURE")
endif()
if(NOT PENSTOCK_HAVE_RDMA)
  string(APPEND PENSTOCK_PC_CFLAGS " -DPENSTOCK_NO_RDMA")
endif()
list(JOIN requires ", " PENSTOCK_PC_REQUIRES)
list(JOIN requires_private ", " PENSTOCK_PC_REQUIRES_PRIVATE)
file(RELATIVE_PATH PENSTOCK_PC_PREFIX
  "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
configure_file(
  "${PROJECT_SOURCE_DIR}/cmake/penstock.pc.in" "${PROJECT_BINARY_DIR}/penstock.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/penstock.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig"
  COMPONENT dev)

if(PROJECT_IS_TOP_LEVEL)
  include("${PROJECT_SOURCE_DIR}/cmake/packaging/deb.cmake")
endif()
