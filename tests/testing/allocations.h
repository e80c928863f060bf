// Counts calls of operator new in the test binary, whose operator new it replaces, for tests of
// "the steady state allocates nothing"; and looks into what is deleted, for tests of "secrets are
// wiped". Under a sanitizer, whose allocator must stay, it can do neither.
//
// Any thread.
#ifndef PENSTOCK_TESTS_TESTING_ALLOCATIONS_H_
#define PENSTOCK_TESTS_TESTING_ALLOCATIONS_H_

#include <penstock/export.h>

#include <cstdint>
#include <string_view>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

bool CanCountAllocations();
// So far, on the calling thread.
int64_t AllocationsOnThisThread();

// While it lives, counts what the calling thread deletes with `needle` in it. One at a time;
// `needle` must outlive it.
class DeletedWatch {
 public:
  explicit DeletedWatch(std::string_view needle);
  ~DeletedWatch();
  DeletedWatch(const DeletedWatch&) = delete;
  DeletedWatch& operator=(const DeletedWatch&) = delete;
  int64_t found() const;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_ALLOCATIONS_H_
