# grpc_go_peer: gRPC's Go with a socket. Left out where Debian's golang-go and golang-google-grpc-dev are
# not installed.
find_program(PENSTOCK_GO NAMES go)
find_path(PENSTOCK_GO_SOURCES NAMES google.golang.org/grpc/credentials/alts/internal/conn/record.go
  PATHS /usr/share/gocode/src NO_DEFAULT_PATH)
mark_as_advanced(PENSTOCK_GO PENSTOCK_GO_SOURCES)
if(NOT PENSTOCK_GO OR NOT PENSTOCK_GO_SOURCES)
  message(STATUS "penstock: no Go with gRPC (golang-go, golang-google-grpc-dev), grpc_go_peer is left out")
  return()
endif()

# Only packages below the same folder may import an internal one: there an overlay shows our file.
set(package google.golang.org/grpc/credentials/alts/penstock_peer)
set(source "${CMAKE_CURRENT_SOURCE_DIR}/grpc_go_peer.go")
set(overlay "${CMAKE_CURRENT_BINARY_DIR}/grpc_go_overlay.json")
file(CONFIGURE OUTPUT "${overlay}" CONTENT
  "{\"Replace\": {\"@PENSTOCK_GO_SOURCES@/@package@/grpc_go_peer.go\": \"@source@\"}}\n" @ONLY)
cmake_path(GET PENSTOCK_GO_SOURCES PARENT_PATH go_path)
# Compiled packages are kept for other builds, in the user's cache where there is one.
set(go_environment GO111MODULE=off CGO_ENABLED=0 "GOPATH=${go_path}" GOFLAGS=)
if(NOT DEFINED ENV{HOME})
  list(APPEND go_environment "GOCACHE=${CMAKE_CURRENT_BINARY_DIR}/go")
endif()
set(peer "${CMAKE_CURRENT_BINARY_DIR}/grpc_go_peer")
add_custom_command(OUTPUT "${peer}"
  COMMAND "${CMAKE_COMMAND}" -E env ${go_environment} "${PENSTOCK_GO}" build -trimpath
    -buildvcs=false -overlay "${overlay}" -o "${peer}" "${package}"
  DEPENDS "${source}" "${overlay}"
  COMMENT "Building Go program tests/interop/grpc_go_peer"
  VERBATIM)
add_custom_target(penstock_grpc_go ALL DEPENDS "${peer}")
