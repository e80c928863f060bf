// The steady state allocates nothing: 100,000 requests after a warm-up, counted at the global
// operator new and, of sealed streams, in the cryptographic library. And the object a connection
// is, held to its size.
#include <penstock/framed_reader.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/connection.h"
#include "testing/harness.h"
#include "testing/sealed_allocations.h"

#ifdef PENSTOCK_HAVE_SECURE
#include "secure/cipher_contexts.h"
#include "secure/openssl_aead.h"
#endif

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

constexpr size_t kBatchDepth = 16;
constexpr size_t kBatchSize = 64;
// Sealing and opening at either end of a pair.
constexpr uint64_t kDirections = 4;
// Of OpenSSL's, beside the object that has it.
constexpr uint64_t kAllocationsOfAContext = 4;

// Sends `depth` requests, each with a callback of its own, waits for all answers, and does it
// again.
class Asker {
 public:
  Asker(Stream& stream, size_t size, size_t depth = 1)
      : stream_(stream), size_(size), depth_(depth) {}
  int rounds() const { return rounds_; }
  // Ask goes on after these.
  void PauseAt(int rounds) { pause_at_ = rounds; }
  void Ask() {
    for (size_t i = 0; i < depth_; ++i) {
      absl::StatusOr<Buffer> request = stream_.loop().pool().Allocate(size_);
      ASSERT_TRUE(request.ok());
      request->Extend(size_);
      stream_.Write(*std::move(request), [](absl::Status status) { ASSERT_TRUE(status.ok()); });
    }
    waiting_ = depth_ * size_;
    Listen();
  }

 private:
  void Listen() {
    stream_.ReadReady([this](absl::StatusOr<Buffer> data) {
      ASSERT_TRUE(data.ok());
      waiting_ -= data->size();
      if (waiting_ > 0) return Listen();
      if (++rounds_ != pause_at_) Ask();
    });
  }

  Stream& stream_;
  const size_t size_;
  const size_t depth_;
  size_t waiting_ = 0;
  int rounds_ = 0;
  int pause_at_ = -1;
};

// Sends a frame, and the next when a framed reader at the other end has it.
class FrameAsker {
 public:
  FrameAsker(Stream& stream, FramedReader reader) : stream_(stream), reader_(std::move(reader)) {}
  int frames() const { return frames_; }
  void Ask() {
    absl::StatusOr<Buffer> frame = stream_.loop().pool().Allocate(kFrame);
    ASSERT_TRUE(frame.ok());
    frame->Extend(kFrame);
    std::memcpy(frame->mutable_data(), "\0\0\0\x03\xe8", kFrame - kBody);
    stream_.Write(*std::move(frame), [](absl::Status status) { ASSERT_TRUE(status.ok()); });
    reader_.ReadFrame([this](absl::StatusOr<Frame> got) {
      ASSERT_TRUE(got.ok()) << got.status();
      ASSERT_EQ(got->body.size(), kBody);
      ++frames_;
      Ask();
    });
  }

 private:
  static constexpr size_t kBody = 1000;
  static constexpr size_t kFrame = 5 + kBody;
  Stream& stream_;
  FramedReader reader_;
  int frames_ = 0;
};

TEST_P(AllocationTest, AHundredThousandEchoesAllocateNothing) {
  // A direction's next key is derived by OpenSSL, which has no way to do that without allocating.
  const uint64_t of_a_key = SealedAllocationsOfAKey();
  for (size_t size : {64u, 1024u, 16384u, 65512u}) {
    StreamPair pair = Pair();
    EchoForever(std::move(pair.server));
    Asker asker(*pair.client, size);
    asker.Ask();
    ASSERT_TRUE(Drive([&] { return asker.rounds() >= 2000; }));
    const int requests = size == 64 ? 100'000 : size <= 16384 ? 10'000 : 1000;
    const int until = asker.rounds() + requests;
    const auto keys = static_cast<uint64_t>(until) / kRecordsOfAKey -
                      static_cast<uint64_t>(asker.rounds()) / kRecordsOfAKey;
    const uint64_t before = allocations;
    const uint64_t sealed_before = SealedAllocations();
    while (asker.rounds() < until) loop().Poll();
    EXPECT_EQ(allocations - before, 0u) << "in " << requests << " requests of " << size << " bytes";
    // Both directions are sealed and opened here, each with keys of its own.
    EXPECT_LE(SealedAllocations() - sealed_before, 4 * keys * of_a_key)
        << "in " << requests << " requests of " << size << " bytes";
  }
}

TEST_P(AllocationTest, ManyRequestsAtOnceAllocateNothing) {
  StreamPair pair = Pair();
  EchoForever(std::move(pair.server));
  Asker asker(*pair.client, kBatchSize, kBatchDepth);
  asker.Ask();
  ASSERT_TRUE(Drive([&] { return asker.rounds() >= 200; }));
  const int until = asker.rounds() + 2000;
  const uint64_t before = allocations;
  const uint64_t sealed_before = SealedAllocations();
  while (asker.rounds() < until) loop().Poll();
  EXPECT_EQ(allocations - before, 0u);
  EXPECT_EQ(SealedAllocations() - sealed_before, 0u);
}

// A rest gives cipher contexts back, for an idle stream holds none: the first request after it
// takes one for each direction at either end, and those that follow nothing. A plain stream has
// none.
TEST_P(AllocationTest, AfterARestTheFirstRequestTakesContextsAndNoOther) {
  StreamPair pair = Pair();
  EchoForever(std::move(pair.server));
  Asker asker(*pair.client, 1024);
  const auto ask_until = [&](int rounds) {
    asker.PauseAt(rounds);
    asker.Ask();
    while (asker.rounds() < rounds) loop().Poll();
  };
  ask_until(2000);
  ASSERT_TRUE(Drive([&] { return loop().Snapshot().timers == 0; })) << "an idle loop sleeps";
  const uint64_t before = allocations;
  const uint64_t sealed_before = SealedAllocations();
  ask_until(2001);
  const uint64_t sealed = SealedAllocations() - sealed_before;
  EXPECT_LE(sealed, kDirections * kAllocationsOfAContext);
  EXPECT_EQ(allocations - before, sealed > 0 ? kDirections : 0) << "an object for each context";
  const uint64_t after = allocations;
  const uint64_t sealed_after = SealedAllocations();
  ask_until(3000);
  EXPECT_EQ(allocations - after, 0u);
  EXPECT_EQ(SealedAllocations() - sealed_after, 0u);
}

#ifdef PENSTOCK_HAVE_SECURE
// One direction more than there are contexts, in turns: each finds that its own has gone to another
// and sets its key in one that is there, which takes time, and no memory.
TEST(SealedAllocationTest, MoreDirectionsThanContextsAllocateNothing) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer replaces operator new";
  const auto contexts = std::make_shared<CipherContexts>(*NewOpensslCrypto());
  constexpr size_t kMany = CipherContexts::kContextsMax + 1;
  constexpr RecordProtocol kProtocol = RecordProtocol::kGcmAes128Rekey;
  const std::string key(RecordKeySize(kProtocol), 'k');
  std::vector<RecordCipher> ciphers;
  for (size_t i = 0; i < kMany; ++i) {
    ciphers.emplace_back(contexts, *KeySchedule::Create(kProtocol, RecordSender::kClient, key));
  }
  const auto turn = [&ciphers] {
    for (RecordCipher& cipher : ciphers) ASSERT_NE(cipher.StartSeal(), nullptr);
  };
  turn();
  EXPECT_EQ(contexts->live(), CipherContexts::kContextsMax);
  const uint64_t before = allocations;
  const uint64_t sealed_before = SealedAllocations();
  const uint64_t keys_before = contexts->keys_set();
  turn();
  EXPECT_EQ(allocations - before, 0u);
  EXPECT_EQ(SealedAllocations() - sealed_before, 0u);
  EXPECT_EQ(contexts->keys_set() - keys_before, kMany);
}
#endif

TEST_P(AllocationTest, FramesAllocateNothing) {
  StreamPair pair = Pair();
  FrameAsker asker(*pair.client, FramedReader(std::move(pair.server), FrameFormat::Grpc()));
  asker.Ask();
  ASSERT_TRUE(Drive([&] { return asker.frames() >= 500; }));
  const int until = asker.frames() + 10'000;
  const uint64_t before = allocations;
  const uint64_t sealed_before = SealedAllocations();
  while (asker.frames() < until && !HasFailure()) loop().Poll();
  EXPECT_EQ(allocations - before, 0u);
  EXPECT_EQ(SealedAllocations() - sealed_before, 0u);
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
