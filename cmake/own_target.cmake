# How Penstock compiles its own targets. Everything is PRIVATE: no flag reaches a consumer.
function(penstock_own_target target)
  target_compile_features(${target} PRIVATE cxx_std_20)
  target_compile_options(${target} PRIVATE
    -Wall -Wextra ${PENSTOCK_SANITIZE_FLAGS} ${PENSTOCK_COVERAGE_FLAGS})
  if(PENSTOCK_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  target_link_options(${target} PRIVATE ${PENSTOCK_SANITIZE_FLAGS} ${PENSTOCK_COVERAGE_FLAGS})
  set_target_properties(${target} PROPERTIES
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    POSITION_INDEPENDENT_CODE ON)
endfunction()
