// Harness: the fixture of tests that need a loop and streams on it. It owns the environment, one
// loop and the streams that its listeners accepted, and checks at the end of every test that
// nothing is left: no open connection, no byte of the pool, no fault of the library's own.
#ifndef PENSTOCK_TESTS_TESTING_HARNESS_H_
#define PENSTOCK_TESTS_TESTING_HARNESS_H_

#include <penstock/connect.h>
#include <penstock/export.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "testing/environment.h"
#include "testing/fate.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct StreamPair {
  StreamPtr client;
  StreamPtr server;
};

class Harness : public ::testing::TestWithParam<EnvironmentCase> {
 protected:
  Harness();
  ~Harness() override;
  void SetUp() override;
  void TearDown() override;

  Environment& environment() { return *environment_; }
  Loop& loop() { return *loop_; }
  // Replaces the loop by one with these options. Before any stream is made.
  void RemakeLoop(LoopOptions options);
  // The test ends the loop itself.
  std::unique_ptr<Loop> TakeLoop();
  // The test provokes faults, which otherwise fail it at the end.
  void AllowFaults() { faults_allowed_ = true; }
  bool is_unix() const { return is_unix_; }

  // Driving also runs this loop, until it is taken off again.
  void AlsoDrive(Loop* loop) { driven_.push_back(loop); }
  void StopDriving(Loop* loop) { std::erase(driven_, loop); }
  bool Drive(absl::FunctionRef<bool()> done);
  void Settle();
  // Runs the loop for `duration` of its own time.
  void Pass(absl::Duration duration);

  // A listener of the environment's listening engine; what it accepts goes to accepted().
  std::unique_ptr<Listener> Listen(ListenOptions options = {});
  std::deque<StreamPtr>& accepted() { return accepted_; }
  ConnectOptions Connecting(StreamOptions stream = {});
  absl::StatusOr<StreamPtr> ConnectTo(const SocketAddress& address, ConnectOptions options);
  // Two ends of one connection. The listener behind it has gone.
  StreamPair Pair(StreamOptions client = {}, StreamOptions server = {});

  // Socket buffers that fill soon.
  static StreamOptions SmallBuffers() {
    StreamOptions options;
    options.send_buffer = 16 * 1024;
    options.receive_buffer = 16 * 1024;
    return options;
  }

  BufferChain Chain(std::string_view bytes);

  // Start the operation, and run the loop until it has ended.
  absl::StatusOr<std::string> Read(Stream& stream);
  absl::Status Write(Stream& stream, std::string_view bytes);
  absl::Status Shutdown(Stream& stream);
  struct Received {
    std::string data;
    absl::Status end;  // OK when `size` was reached first
  };
  Received ReadUpTo(Stream& stream, size_t size);
  Received ReadToEnd(Stream& stream) { return ReadUpTo(stream, SIZE_MAX); }
  // Sends `bytes` and checks that they arrive. The bytes a test expects to stand between a known
  // state and what it checks.
  void Exchange(Stream& from, Stream& to, std::string_view bytes);

 private:
  std::unique_ptr<Environment> environment_;
  std::unique_ptr<Loop> loop_;
  std::vector<Loop*> driven_;
  std::deque<StreamPtr> accepted_;
  bool faults_allowed_ = false;
  bool is_unix_ = false;
};

// A stream that reads for ever, checks the pattern of `seed` and counts. Owns its stream.
class PatternReader {
 public:
  PatternReader(StreamPtr stream, uint64_t seed) : stream_(std::move(stream)), seed_(seed) {}
  void Start() { Next(); }
  uint64_t received() const { return received_; }
  bool intact() const { return intact_; }
  bool ended() const { return ended_; }
  const absl::Status& end() const { return end_; }
  Stream& stream() { return *stream_; }
  StreamPtr TakeStream() { return std::move(stream_); }

 private:
  void Next();

  StreamPtr stream_;
  uint64_t seed_;
  uint64_t received_ = 0;
  bool intact_ = true;
  bool ended_ = false;
  absl::Status end_;
};

// Writes `total` bytes of the pattern of `seed`, waiting for room between pieces, then calls
// ShutdownWrite. Does not own the stream.
class PatternWriter {
 public:
  PatternWriter(Stream& stream, uint64_t seed, uint64_t total, size_t piece = 64 * 1024)
      : stream_(stream), seed_(seed), total_(total), piece_(piece) {}
  void Start() { Next(); }
  bool ended() const { return ended_; }
  const absl::Status& end() const { return end_; }
  uint64_t queued() const { return queued_; }

 private:
  void Next();
  void End(absl::Status status);

  Stream& stream_;
  uint64_t seed_;
  uint64_t total_;
  size_t piece_;
  uint64_t queued_ = 0;
  bool ended_ = false;
  absl::Status end_;
};

// Sends back what arrives until the stream ends; the closure owns the stream.
void EchoForever(StreamPtr stream);

std::string EnvironmentName(const ::testing::TestParamInfo<EnvironmentCase>& info);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_HARNESS_H_
