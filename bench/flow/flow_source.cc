// Sends one way, as fast as the stream takes it, for a time; then ends its side, waits for the
// peer's end, which says that everything was read, and prints one JSON line. The other end is
// flow_sink. What is sent is the same 64 KiB again and again, which nobody looks at: what is left
// is what the stream costs.
#include <penstock/connect.h>
#include <penstock/coro.h>
#include <penstock/loop.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/json.h"
#include "common/program.h"
#include "common/sealing.h"
#include "common/stopwatch.h"

ABSL_FLAG(std::string, connect, "", "address of flow_sink");
ABSL_FLAG(std::string, engine, "auto", "auto, epoll or uring");
ABSL_FLAG(absl::Duration, duration, absl::Seconds(1), "how long to send");

namespace {

using penstock::Buffer;
using penstock::Loop;
using penstock::StreamPtr;
namespace coro = penstock::coro;

constexpr size_t kChunk = 64 * 1024;

struct Outcome {
  uint64_t bytes = 0;
  absl::Duration elapsed;
};

coro::Task<absl::Status> Flow(Loop& loop, const penstock::SocketAddress& address,
                              const examples::Sealing& sealing, Outcome& outcome) {
  absl::StatusOr<Buffer> chunk = loop.pool().Allocate(kChunk);
  if (!chunk.ok()) co_return chunk.status();
  chunk->Extend(kChunk);
  penstock::ConnectOptions options;
  options.stream.send_queue_low = kChunk;
  options.stream.send_queue_high = 4 * kChunk;
  absl::StatusOr<StreamPtr> stream = co_await coro::Connect(loop, address, options);
  if (!stream.ok()) co_return stream.status();
  stream = co_await examples::Sealing::Await(sealing, *std::move(stream));
  if (!stream.ok()) co_return stream.status();

  const examples::Stopwatch watch;
  while (watch.elapsed() < absl::GetFlag(FLAGS_duration)) {
    (*stream)->Write(chunk->Share());
    outcome.bytes += kChunk;
    if ((*stream)->writable()) continue;
    const absl::Status room = co_await coro::NotifyWritable(**stream);
    if (!room.ok()) co_return room;
  }
  (*stream)->ShutdownWrite();
  const absl::StatusOr<Buffer> end = co_await coro::Read(**stream);
  outcome.elapsed = watch.elapsed();
  if (end.ok()) co_return absl::InternalError("flow_sink sent something");
  co_return penstock::IsEof(end.status()) ? absl::OkStatus() : end.status();
}

coro::Task<void> Conclude(Loop& loop, coro::Task<absl::Status> task, absl::Status& result) {
  result = co_await std::move(task);
  loop.Stop();
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(argc, argv, "[flags]\n\nSends one way as fast as it can.");
  const penstock::SocketAddress address =
      examples::AddressOrFail("connect", absl::GetFlag(FLAGS_connect));
  const examples::Sealing sealing = examples::Sealing::FromFlags(false);
  penstock::LoopOptions options;
  options.engine = examples::EngineOrFail("engine", absl::GetFlag(FLAGS_engine));
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (!loop.ok()) examples::Fail(std::string(loop.status().message()));

  Outcome outcome;
  absl::Status result;
  coro::Task<void> task = Conclude(**loop, Flow(**loop, address, sealing, outcome), result);
  task.Start();
  if (!task.done()) (*loop)->Run();
  if (!result.ok()) examples::Fail(std::string(result.message()));
  const double seconds = absl::ToDoubleSeconds(outcome.elapsed);
  examples::JsonLine()
      .Add("bytes", outcome.bytes)
      .Add("seconds", seconds)
      .Add("bytes_per_s", static_cast<double>(outcome.bytes) / seconds)
      .Print();
  return 0;
}
