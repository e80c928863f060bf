// Whether a sanitizer watches this build: it sees more in each run and takes some ten times as
// long.
#ifndef PENSTOCK_TESTS_TESTING_SANITIZED_H_
#define PENSTOCK_TESTS_TESTING_SANITIZED_H_

namespace penstock::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SANITIZED_H_
