#include "rdma/control_channel.h"

#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "rdma/control_codec.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

ControlChannel::ControlChannel(StreamPtr stream, Owner& owner)
    : reader_(std::move(stream), ControlFrameFormat(/*with_data=*/true)),
      owner_(owner),
      bounds_(reader_.stream().send_bounds()) {}

absl::Status ControlChannel::Check() const {
  // Beyond what may be queued by HasRoom: answers, which wait for nothing.
  const size_t needed = kQueuedMax + 2 * kStreamPieceMax;
  if (bounds_.max >= needed) return absl::OkStatus();
  const SocketAddress peer = stream().peer();
  return PeerStatus(absl::StatusCode::kInvalidArgument, "open RDMA endpoint to", &peer,
                    absl::StrCat("send_queue_max of the control stream is ", bounds_.max,
                                 ", and must be ", needed, " at least"));
}

void ControlChannel::Start() { Read(); }

void ControlChannel::Read() {
  reader_.ReadFrame([this](absl::StatusOr<Frame> frame) { OnFrame(std::move(frame)); });
}

void ControlChannel::OnFrame(absl::StatusOr<Frame> frame) {
  if (!frame.ok()) return owner_.OnChannelEnd(frame.status());
  // First, for the owner may destroy this.
  Read();
  const absl::StatusOr<ControlHeader> header = DecodeControlHeader(frame->header());
  if (header.ok() && header->type == ControlType::kData) {
    OnDataFrame(*std::move(frame));
  } else {
    OnControlFrame(*std::move(frame));
  }
}

void ControlChannel::OnControlFrame(Frame frame) {
  const absl::StatusOr<ControlHeader> header = DecodeControlHeader(frame.header());
  if (!header.ok()) return owner_.OnChannelEnd(header.status());
  std::string bytes(frame.header());
  bytes += frame.body.ToString();
  const std::string_view body = std::string_view(bytes).substr(frame.header_size);
  const absl::StatusOr<ControlMessage> message = DecodeControl(*header, body);
  if (!message.ok()) return owner_.OnChannelEnd(message.status());
  owner_.OnControl(*message, bytes);
}

void ControlChannel::OnDataFrame(Frame frame) {
  std::array<char, kMessageHeaderSize> bytes;
  const size_t size = frame.body.CopyTo(bytes);
  const absl::StatusOr<MessageHeader> header = DecodeMessageHeader({bytes.data(), size});
  if (!header.ok()) return owner_.OnChannelEnd(header.status());
  frame.body.TrimFront(size);
  owner_.OnData(*header, std::move(frame.body));
}

Buffer ControlChannel::Copy(std::string_view bytes) const {
  absl::StatusOr<Buffer> buffer = stream().loop().pool().Copy(bytes, BufferTag::kRdma);
  if (buffer.ok()) return *std::move(buffer);
  auto memory = std::make_unique<char[]>(bytes.size());
  std::memcpy(memory.get(), bytes.data(), bytes.size());
  const char* const data = memory.get();
  return Buffer::FromExternal(data, bytes.size(), [memory = std::move(memory)] {});
}

void ControlChannel::Send(std::string_view control) { out_.Append(Copy(control)); }

void ControlChannel::SendData(const MessageHeader& header, std::string_view prefix,
                              BufferChain payload) {
  std::array<char, kMessageHeaderSize> bytes;
  EncodeMessageHeader(header, bytes);
  std::string front = ControlDataHeader(bytes.size() + prefix.size() + payload.size());
  front.append(bytes.data(), bytes.size());
  front.append(prefix);
  out_.Append(Copy(front));
  out_.Append(std::move(payload));
}

bool ControlChannel::Flush() {
  if (out_.empty()) return true;
  const size_t size = out_.size();
  if (queued_ + size > bounds_.max) return false;
  queued_ += size;
  reader_.stream().Write(std::exchange(out_, {}), [this, size](absl::Status status) {
    queued_ -= size;
    // How sending has failed, reading tells as well; a reset may still have bytes before it.
    if (status.ok()) owner_.OnChannelRoom();
  });
  return true;
}

void ControlChannel::Finish() { reader_.stream().ShutdownWrite(); }

}  // namespace internal
PENSTOCK_END_NAMESPACE
