// The steady state allocates nothing: 100,000 requests after a warm-up, counted at the global
// operator new and, of sealed streams, in the cryptographic library. And the object a connection
// is, held to its size.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "engine/connection.h"
#include "testing/harness.h"
#include "testing/sealed_allocations.h"

namespace {

// Allocations through the global operator new; the tests that read it have one thread.
uint64_t allocations = 0;

}  // namespace

// The sanitizers have an operator new of their own. Not inlined: g++ would see free() meet what
// operator new gave and take it for a mistake (-Wmismatched-new-delete).
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
[[gnu::noinline]] void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new[](size_t size) { return ::operator new(size); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
#endif

namespace penstock::internal {
namespace {

class AllocationTest : public Harness {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "a sanitizer replaces operator new";
    Harness::SetUp();
  }
};

// Asks, waits for the whole answer, asks again.
class Asker {
 public:
  Asker(Stream& stream, size_t size) : stream_(stream), size_(size) {}
  int answers() const { return answers_; }
  void Ask() {
    absl::StatusOr<Buffer> request = stream_.loop().pool().Allocate(size_);
    ASSERT_TRUE(request.ok());
    request->Extend(size_);
    waiting_ = size_;
    stream_.Write(*std::move(request), [](absl::Status status) { ASSERT_TRUE(status.ok()); });
    Listen();
  }

 private:
  void Listen() {
    stream_.ReadReady([this](absl::StatusOr<Buffer> data) {
      ASSERT_TRUE(data.ok());
      waiting_ -= data->size();
      if (waiting_ > 0) return Listen();
      ++answers_;
      Ask();
    });
  }

  Stream& stream_;
  const size_t size_;
  size_t waiting_ = 0;
  int answers_ = 0;
};

// Deriving the next key of a direction, every 65,536 records, may allocate in OpenSSL, for it has
// no way to derive one without.
constexpr uint64_t kRekeyAllocations = 100;

TEST_P(AllocationTest, AHundredThousandEchoesAllocateNothing) {
  for (size_t size : {64u, 1024u, 16384u, 65512u}) {
    StreamPair pair = Pair();
    EchoForever(std::move(pair.server));
    Asker asker(*pair.client, size);
    asker.Ask();
    ASSERT_TRUE(Drive([&] { return asker.answers() >= 2000; }));
    const int requests = size == 64 ? 100'000 : size <= 16384 ? 10'000 : 1000;
    const int until = asker.answers() + requests;
    const uint64_t before = allocations;
    const uint64_t sealed_before = SealedAllocations();
    while (asker.answers() < until) loop().Poll();
    EXPECT_EQ(allocations - before, 0u) << "in " << requests << " requests of " << size << " bytes";
    // Both directions are sealed and opened here, and only the small ones rekey in that time.
    EXPECT_LE(SealedAllocations() - sealed_before, size == 64 ? 4 * kRekeyAllocations : 0)
        << "in " << requests << " requests of " << size << " bytes";
  }
}

TEST_P(AllocationTest, ArmingAndCancellingATimerAllocatesNothing) {
  Timer timer(loop());
  int fired = 0;
  timer.Arm(absl::Milliseconds(1), [&] { ++fired; });
  ASSERT_TRUE(Drive([&] { return fired == 1; }));
  const uint64_t before = allocations;
  for (int i = 0; i < 10'000; ++i) {
    timer.Arm(absl::Milliseconds(i % 50), [&] { ++fired; });
    if (i % 3 == 0) timer.Cancel();
    if (i % 100 == 0) loop().Poll();
  }
  EXPECT_EQ(allocations - before, 0u);
}

INSTANTIATE_TEST_SUITE_P(Engines, AllocationTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, AllocationTest, ::testing::ValuesIn(SealedEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
