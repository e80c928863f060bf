// Sends back every byte it receives. Try it with `nc 127.0.0.1 7000` or with echo_client.
#include <penstock/stream.h>

#include <utility>

#include "absl/status/statusor.h"
#include "common/program.h"
#include "common/server.h"

namespace {

using penstock::Buffer;
using penstock::Stream;
using penstock::StreamPtr;

// The callbacks own the stream, so that it lives as long as something waits on it. Each captures
// one pointer, which AnyInvocable keeps inside itself: serving a request allocates nothing. Reading
// goes on when the kernel has taken the reply, so a peer that does not read holds one buffer at
// most, and not for ever: --write-timeout cuts it off.
void Echo(StreamPtr stream) {
  Stream& in = *stream;
  in.ReadReady([stream = std::move(stream)](absl::StatusOr<Buffer> data) mutable {
    if (!data.ok()) return;  // the peer has finished, or is gone: the stream closes here
    Stream& out = *stream;
    out.Write(*std::move(data), [stream = std::move(stream)](absl::Status sent) mutable {
      if (sent.ok()) Echo(std::move(stream));
    });
  });
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(argc, argv, "[flags]\n\nSends back every byte it receives.");
  return examples::RunServer(&Echo);
}
