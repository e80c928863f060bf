// A client for tests of servers: connects, seals as the flags say, sends its standard input and
// then the end, and copies what comes back to standard output:
//   seal_pipe --connect=ADDR [--seal=... as the examples]
// With --flood it sends without end and reads nothing, until the server cuts it off.
#include <penstock/coro.h>

#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "common/program.h"
#include "common/sealing.h"

ABSL_FLAG(std::string, connect, "", "address of the server");
ABSL_FLAG(std::string, engine, "auto", "auto, epoll or uring");
ABSL_FLAG(bool, flood, false, "send without end and read nothing");

namespace {

using penstock::Loop;
using penstock::StreamPtr;
namespace coro = penstock::coro;

coro::Task<absl::Status> Flood(Loop& loop, penstock::Stream& stream) {
  const std::string flood(64 * 1024, 'x');
  absl::Status sent;
  while (sent.ok()) {
    absl::StatusOr<penstock::Buffer> bytes = loop.pool().Copy(flood);
    if (!bytes.ok()) co_return bytes.status();
    sent = co_await coro::Write(stream, *std::move(bytes));
  }
  co_return sent;
}

coro::Task<absl::Status> Pipe(Loop& loop, const penstock::SocketAddress& address,
                              const examples::Sealing& sealing) {
  absl::StatusOr<StreamPtr> stream = co_await coro::Connect(loop, address);
  if (!stream.ok()) co_return stream.status();
  stream = co_await examples::Sealing::Await(sealing, *std::move(stream));
  if (!stream.ok()) co_return stream.status();
  if (absl::GetFlag(FLAGS_flood)) co_return co_await Flood(loop, **stream);
  const std::string input(std::istreambuf_iterator<char>(std::cin), {});
  absl::StatusOr<penstock::Buffer> bytes = loop.pool().Copy(input);
  if (!bytes.ok()) co_return bytes.status();
  (*stream)->Write(*std::move(bytes));
  (*stream)->ShutdownWrite();
  for (;;) {
    const absl::StatusOr<penstock::Buffer> data = co_await coro::Read(**stream);
    if (!data.ok()) co_return penstock::IsEof(data.status()) ? absl::OkStatus() : data.status();
    std::cout << data->view() << std::flush;
  }
}

coro::Task<void> Conclude(Loop& loop, coro::Task<absl::Status> task, absl::Status& result) {
  result = co_await std::move(task);
  loop.Stop();
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(argc, argv, "[flags]\n\nPipes bytes through a sealed connection.");
  const penstock::SocketAddress address =
      examples::AddressOrFail("connect", absl::GetFlag(FLAGS_connect));
  const examples::Sealing sealing = examples::Sealing::FromFlags(/*listens=*/false);
  penstock::LoopOptions options;
  options.engine = examples::EngineOrFail("engine", absl::GetFlag(FLAGS_engine));
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (!loop.ok()) examples::Fail(std::string(loop.status().message()));
  absl::Status result;
  coro::Task<void> task = Conclude(**loop, Pipe(**loop, address, sealing), result);
  task.Start();
  if (!task.done()) (*loop)->Run();
  if (!result.ok()) examples::Complain(std::string(result.message()));
  return result.ok() ? 0 : 1;
}
