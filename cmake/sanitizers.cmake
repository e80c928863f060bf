# Flags of PENSTOCK_SANITIZE, PENSTOCK_FUZZ and PENSTOCK_COVERAGE, applied by penstock_own_target()
# and never exported.
set(PENSTOCK_SANITIZE_FLAGS "")
if(PENSTOCK_SANITIZE STREQUAL "address")
  # One build for both: their reports do not overlap.
  # Without the check of vptrs: it opens a pipe to look at memory, and calls an object bad when it
  # gets none, as in the tests that run out of descriptors.
  set(PENSTOCK_SANITIZE_FLAGS
    -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all)
elseif(PENSTOCK_SANITIZE STREQUAL "thread")
  set(PENSTOCK_SANITIZE_FLAGS -fsanitize=thread)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # abseil's flags use fences, of which g++ says that the sanitizer does not see them.
    list(APPEND PENSTOCK_SANITIZE_FLAGS -Wno-tsan)
  endif()
elseif(NOT PENSTOCK_SANITIZE STREQUAL "")
  message(FATAL_ERROR
    "PENSTOCK_SANITIZE is '${PENSTOCK_SANITIZE}': address, thread and empty are accepted")
endif()
if(PENSTOCK_SANITIZE_FLAGS)
  list(APPEND PENSTOCK_SANITIZE_FLAGS -fno-omit-frame-pointer)
endif()

if(PENSTOCK_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "PENSTOCK_FUZZ needs clang, whose runtime has libFuzzer")
  endif()
  list(APPEND PENSTOCK_SANITIZE_FLAGS -fsanitize=fuzzer-no-link)
endif()

set(PENSTOCK_COVERAGE_FLAGS "")
if(PENSTOCK_COVERAGE)
  # atomic: threads count into the same counters.
  set(PENSTOCK_COVERAGE_FLAGS --coverage -fprofile-update=atomic)
endif()
