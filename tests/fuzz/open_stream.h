// OpenStream: a stream whose other end is the fuzz target: what is written is there to be looked
// at, what is read comes when and in the pieces that it says.
//
// The stream is owned by whoever reads it; its Wire is shared, and outlives either. Callbacks run
// in Wire::Turn, never inside a call of the stream. One thread.
#ifndef PENSTOCK_TESTS_FUZZ_OPEN_STREAM_H_
#define PENSTOCK_TESTS_FUZZ_OPEN_STREAM_H_

#include <penstock/loop.h>
#include <penstock/stream.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace penstock::internal {

class OpenStream final : public Stream {
 public:
  struct Wire {
    // Runs what is due: writes are taken unless `stalled`; a read gets `piece` bytes at most, or
    // the end.
    void Turn(size_t piece) {
      if (!stalled || !end.ok()) {
        for (DoneCallback& done : std::exchange(writes, {})) {
          if (!there) break;  // destroyed unrun, as a stream's are
          std::move(done)(end);
        }
      }
      if (!read) return;
      if (cancelled) return Finish(absl::CancelledError("cancelled"));
      if (!incoming.empty()) {
        const std::string bytes = incoming.substr(0, std::max<size_t>(piece, 1));
        incoming.erase(0, bytes.size());
        return Finish(*pool->Copy(bytes));
      }
      if (!end.ok()) Finish(end);
    }
    void Finish(absl::StatusOr<Buffer> result) {
      cancelled = false;
      ReadCallback done = std::exchange(read, nullptr);
      std::move(done)(std::move(result));
    }

    BufferPool* pool = nullptr;
    std::string said;      // by the stream's owner, and not looked at
    std::string incoming;  // for it
    bool stalled = false;
    bool cancelled = false;
    bool there = true;  // the stream
    absl::Status end;   // not OK: how it has ended
    ReadCallback read;
    std::vector<DoneCallback> writes;
  };

  OpenStream(Loop& loop, std::shared_ptr<Wire> wire) : loop_(loop), wire_(std::move(wire)) {
    wire_->pool = &loop.pool();
  }
  ~OpenStream() override {
    wire_->there = false;
    wire_->read = nullptr;
    wire_->writes.clear();
  }

  void ReadReady(ReadCallback done) override { wire_->read = std::move(done); }
  void CancelRead() override { wire_->cancelled = wire_->read != nullptr; }
  void Write(BufferChain data, DoneCallback done) override {
    wire_->said += data.ToString();
    if (done) wire_->writes.push_back(std::move(done));
  }
  bool writable() const override { return !wire_->stalled; }
  void NotifyWritable(DoneCallback done) override { wire_->writes.push_back(std::move(done)); }
  void ShutdownWrite(DoneCallback done) override {
    if (done) wire_->writes.push_back(std::move(done));
  }
  void ShutdownRead() override {}
  void Abort() override {
    if (wire_->end.ok()) wire_->end = absl::CancelledError("aborted");
  }
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

 private:
  Loop& loop_;
  const std::shared_ptr<Wire> wire_;
};

}  // namespace penstock::internal

#endif  // PENSTOCK_TESTS_FUZZ_OPEN_STREAM_H_
