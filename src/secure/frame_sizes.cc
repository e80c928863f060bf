#include "secure/frame_sizes.h"

#include <penstock/record_protocol.h>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

absl::StatusOr<uint32_t> FrameSize(const char* what, uint32_t wanted, uint32_t by_default) {
  const uint32_t size = wanted == 0 ? by_default : wanted;
  if (size < kRecordFrameMin || size > kRecordFrameMax) {
    return absl::InvalidArgumentError(absl::StrCat("handshake: ", what, " of ", size, " bytes; ",
                                                   kRecordFrameMin, " to ", kRecordFrameMax,
                                                   " are accepted"));
  }
  return size;
}

}  // namespace

absl::StatusOr<FrameSizes> ChooseFrameSizes(RecordMode mode, const HandshakeOptions& options) {
  const bool grpc = mode == RecordMode::kGrpc;
  const absl::StatusOr<uint32_t> send = FrameSize("send_frame_max", options.send_frame_max,
                                                  grpc ? kRecordFrameGrpc : kRecordFrameNative);
  if (!send.ok()) return send.status();
  const absl::StatusOr<uint32_t> receive = FrameSize("receive_frame_max", options.receive_frame_max,
                                                     grpc ? kRecordFrameMax : kRecordFrameNative);
  if (!receive.ok()) return receive.status();
  return FrameSizes{.send_max = *send, .receive_max = *receive};
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
