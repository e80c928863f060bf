// Whether a sanitizer watches this build: it sees more in each run and takes some ten times as
// long. ThreadSanitizer has nothing to see where there is one thread: what runs long there and
// needs no thread runs less, or not at all, under it, and in full under AddressSanitizer.
#ifndef PENSTOCK_TESTS_TESTING_SANITIZED_H_
#define PENSTOCK_TESTS_TESTING_SANITIZED_H_

namespace penstock::testing {

#if defined(__has_feature)
#define PENSTOCK_TESTS_HAS_FEATURE(feature) __has_feature(feature)
#else
#define PENSTOCK_TESTS_HAS_FEATURE(feature) 0
#endif

#if defined(__SANITIZE_THREAD__) || PENSTOCK_TESTS_HAS_FEATURE(thread_sanitizer)
inline constexpr bool kThreadSanitized = true;
#else
inline constexpr bool kThreadSanitized = false;
#endif

#if defined(__SANITIZE_ADDRESS__) || PENSTOCK_TESTS_HAS_FEATURE(address_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = kThreadSanitized;
#endif

#undef PENSTOCK_TESTS_HAS_FEATURE

// Why a test is skipped there.
inline constexpr char kNoThreads[] = "one thread, and long: ThreadSanitizer has nothing to see";

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SANITIZED_H_
