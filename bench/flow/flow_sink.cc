// Reads and drops whatever comes, as a server of the examples: the other end of flow_source.
#include <penstock/stream.h>

#include <utility>

#include "absl/status/statusor.h"
#include "common/program.h"
#include "common/server.h"

namespace {

using penstock::Buffer;
using penstock::Stream;
using penstock::StreamPtr;

void Drop(StreamPtr stream) {
  Stream& in = *stream;
  in.ReadReady([stream = std::move(stream)](absl::StatusOr<Buffer> data) mutable {
    if (data.ok()) Drop(std::move(stream));
  });
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(argc, argv, "[flags]\n\nReads and drops whatever comes.");
  return examples::RunServer(&Drop);
}
