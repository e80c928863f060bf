# gRPC C++'s ALTS frame protector: penstock_grpc_alts, and grpc_alts_echo around it. Included by the
# benches and by the interop tests, whichever comes first; both go on without when it is absent.
include_guard(GLOBAL)

# The runtime library is enough: grpc_alts.cc declares what it uses.
find_library(PENSTOCK_GRPC_LIBRARY NAMES libgrpc.so.29 libgrpc.so)
mark_as_advanced(PENSTOCK_GRPC_LIBRARY)
if(NOT PENSTOCK_GRPC_LIBRARY)
  message(STATUS "penstock: no libgrpc (libgrpc29), grpc_alts_echo and grpc_alts_client are left out")
  return()
endif()

add_library(penstock_grpc_alts STATIC
  "${CMAKE_CURRENT_LIST_DIR}/grpc_alts.cc" "${CMAKE_CURRENT_LIST_DIR}/peer.cc")
penstock_own_target(penstock_grpc_alts)
target_include_directories(penstock_grpc_alts PUBLIC "${CMAKE_CURRENT_LIST_DIR}")
target_link_libraries(penstock_grpc_alts PUBLIC "${PENSTOCK_GRPC_LIBRARY}")

add_executable(grpc_alts_echo "${CMAKE_CURRENT_LIST_DIR}/grpc_alts_echo.cc")
penstock_own_target(grpc_alts_echo)
target_link_libraries(grpc_alts_echo PRIVATE penstock_grpc_alts)
