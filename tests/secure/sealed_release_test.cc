// The caller's code that runs when a sealed stream lets go of external memory: it may destroy the
// stream, and use it.
#include <penstock/seal.h>

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "secure/record_format.h"
#include "testing/fate.h"
#include "testing/pattern.h"
#include "testing/sealed_stream_harness.h"

namespace penstock::internal {
namespace {

class SealedReleaseTest : public SealedStreamHarness {};

TEST_P(SealedReleaseTest, ReleasingWhatWasSealedMayDestroyTheStream) {
  StreamPair pair = HalfSealed(RecordMode::kNative);
  const std::string bytes = PatternBytes(4, 0, 1000);
  Fate write;
  bool released = false;
  pair.server->Write(Buffer::FromExternal(bytes.data(), bytes.size(),
                                          [&] {
                                            released = true;
                                            pair.server.reset();
                                          }),
                     write.OnDone());
  ASSERT_TRUE(Drive([&] { return released && write.ended(); }));
  EXPECT_EQ(write.dropped(), 1);
  // What was written never left, so the end is none that could be taken for the whole.
  const Received received = ReadToEnd(*pair.client);
  EXPECT_EQ(received.data, "");
  EXPECT_TRUE(IsReset(received.end) || is_unix()) << received.end;
}

// When a record is opened, when a part of one is put to rest, when the end of reading leaves it a
// part.
TEST_P(SealedReleaseTest, ReleasingWhatWasReceivedMayDestroyTheStream) {
  const std::string wire = Records(RecordMode::kGrpc, {PatternBytes(4, 0, 1000)}, false);
  enum class Ending { kInOrder, kReset, kAbort, kShutdown };
  for (const Ending ending :
       {Ending::kInOrder, Ending::kReset, Ending::kAbort, Ending::kShutdown}) {
    for (const size_t size : {wire.size(), wire.size() / 2, size_t{2}}) {
      ScriptedEnd end = ReadingFromAScript(RecordMode::kGrpc);
      ASSERT_TRUE(end.below->reading());
      int released = 0;
      end.below->End(Buffer::FromExternal(wire.data(), size, [&] {
        ++released;
        end.stream.reset();
      }));
      if (end.stream != nullptr) {
        ASSERT_TRUE(Drive([&] { return end.stream == nullptr || end.below->reading(); }));
      }
      if (end.stream != nullptr) {
        switch (ending) {
          case Ending::kInOrder:
            end.below->End(absl::OutOfRangeError("end of stream"));
            break;
          case Ending::kReset:
            end.below->End(absl::UnavailableError("reset"));
            break;
          case Ending::kAbort:
            end.stream->Abort();
            break;
          case Ending::kShutdown:
            end.stream->ShutdownRead();
            break;
        }
      }
      ASSERT_TRUE(Drive([&] { return end.read.ended() || end.stream == nullptr; }));
      end.stream.reset();
      Settle();
      EXPECT_EQ(released, 1) << size << " bytes";
      EXPECT_EQ(LiveContexts(), 0u) << size << " bytes";
    }
  }
}

// When a part of a record is put to rest, after which nothing else would have the stream look.
TEST_P(SealedReleaseTest, ReleasingWhatWasReceivedMayWrite) {
  const std::string wire = Records(RecordMode::kGrpc, {PatternBytes(4, 0, 1000)}, false);
  ScriptedEnd end = ReadingFromAScript(RecordMode::kGrpc);
  ASSERT_TRUE(end.below->reading());
  end.below->End(Buffer::FromExternal(wire.data(), kRecordHeaderSize + 4,
                                      [&] { end.stream->Write(Chain("an answer")); }));
  EXPECT_TRUE(Drive([&] { return end.below->written() == 9 + kRecordOverhead; }));
}

TEST_P(SealedReleaseTest, ReleasingWhatWasSealedMayWriteMore) {
  StreamPair pair = HalfSealed(RecordMode::kGrpc);
  const std::string bytes = PatternBytes(5, 0, 1000);
  Fate first, second;
  pair.server->Write(
      Buffer::FromExternal(bytes.data(), bytes.size(),
                           [&] { pair.server->Write(Chain("more"), second.OnDone()); }),
      first.OnDone());
  ASSERT_TRUE(Drive([&] { return first.ended() && second.ended(); }));
  EXPECT_TRUE(first.status().ok()) << first.status();
  EXPECT_TRUE(second.status().ok()) << second.status();
  EXPECT_EQ(pair.server->stats().bytes_out, 1004u);
  EXPECT_EQ(ReadUpTo(*pair.client, 1004 + 2 * kRecordOverhead).data.size(),
            1004 + 2 * kRecordOverhead);
}

INSTANTIATE_TEST_SUITE_P(Environments, SealedReleaseTest, ::testing::ValuesIn(EnvironmentsToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
