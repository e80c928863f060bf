// ScriptedStream: a stream whose reads end when and how a test says, and whose writes go nowhere;
// for what stands above streams.
//
// Owned by whoever reads it. Its loop's thread.
#ifndef PENSTOCK_TESTS_TESTING_SCRIPTED_STREAM_H_
#define PENSTOCK_TESTS_TESTING_SCRIPTED_STREAM_H_

#include <penstock/export.h>
#include <penstock/stream.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "base/check.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class ScriptedStream final : public Stream {
 public:
  explicit ScriptedStream(Loop& loop) : loop_(loop) {}

  void ReadReady(ReadCallback done) override {
    PENSTOCK_CHECK(!done_, "two reads at once");
    ++reads_;
    done_ = std::move(done);
  }
  void CancelRead() override { cancelled_ = true; }
  void Write(BufferChain data, DoneCallback) override { written_ += data.size(); }
  bool writable() const override { return true; }
  void NotifyWritable(DoneCallback) override {}
  void ShutdownWrite(DoneCallback) override {}
  void ShutdownRead() override {}
  void Abort() override {}
  void SetReadDeadline(absl::Duration) override {}
  void SetWriteDeadline(absl::Duration) override {}
  void SetIdleDeadline(absl::Duration) override {}
  SocketAddress peer() const override { return *SocketAddress::Parse("192.0.2.1:7"); }
  SocketAddress local() const override { return {}; }
  Loop& loop() const override { return loop_; }
  StreamStats stats() const override { return {}; }
  SendBounds send_bounds() const override {
    return {.low = 1 << 10, .high = 1 << 16, .max = 1 << 20};
  }

  // A read is pending; CancelRead was called since.
  bool reading() const { return done_ != nullptr; }
  bool cancelled() const { return cancelled_; }
  // So far.
  int reads() const { return reads_; }
  // Bytes so far, none of which is ever told to have left.
  uint64_t written() const { return written_; }

  // End the pending read.
  void End(absl::StatusOr<Buffer> result) {
    cancelled_ = false;
    ReadCallback done = std::exchange(done_, nullptr);
    std::move(done)(std::move(result));
  }
  void Give(std::string_view bytes) { End(*loop_.pool().Copy(bytes)); }

 private:
  Loop& loop_;
  ReadCallback done_;
  bool cancelled_ = false;
  int reads_ = 0;
  uint64_t written_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_SCRIPTED_STREAM_H_
