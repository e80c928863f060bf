// Any bytes are a control message or are refused with its name; what is a message comes back the
// same from its own bytes, and takes no more memory than it may.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "rdma/control_codec.h"

namespace penstock::internal {
namespace {

void ExpectOfControl(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "control message: %s\n", what);
  std::abort();
}

void TryControl(std::string_view input) {
  if (input.size() < kControlHeaderSize) return;
  const std::string_view head = input.substr(0, kControlHeaderSize);
  const absl::StatusOr<ControlHeader> header = DecodeControlHeader(head);
  ExpectOfControl(ControlFrameFormat(true).body_size(head).ok() == header.ok(),
                  "frame and header disagree");
  if (!header.ok()) {
    ExpectOfControl(absl::IsInvalidArgument(header.status()), "an error of another kind");
    return;
  }
  const std::string_view body = input.substr(kControlHeaderSize, header->body_size);
  const absl::StatusOr<ControlMessage> message = DecodeControl(*header, body);
  if (!message.ok()) {
    ExpectOfControl(absl::IsInvalidArgument(message.status()), "an error of another kind");
    return;
  }
  if (std::holds_alternative<ControlSkipped>(*message)) return;
  ExpectOfControl(CheckControl(*message).ok(), "taken, and yet it cannot be");
  const std::string bytes = EncodeControl(*message);
  ExpectOfControl(bytes.size() <= kControlHeaderSize + kControlBodyMax, "longer than it may be");
  const absl::StatusOr<ControlMessage> again = DecodeControl(
      *DecodeControlHeader(bytes), std::string_view(bytes).substr(kControlHeaderSize));
  ExpectOfControl(again.ok() && *again == *message, "another message comes back");
}

}  // namespace
}  // namespace penstock::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  penstock::internal::TryControl({reinterpret_cast<const char*>(data), size});
  return 0;
}
