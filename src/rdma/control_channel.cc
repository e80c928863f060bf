#include "rdma/control_channel.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "rdma/control_codec.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

ControlChannel::ControlChannel(StreamPtr stream, Owner& owner)
    : reader_(std::move(stream), ControlFrameFormat(/*with_data=*/true)),
      owner_(owner),
      queued_max_(std::min<size_t>(reader_.stream().send_bounds().max, kQueuedMax)) {}

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

void ControlChannel::SendData(const MessageHeader& header,
                              const std::optional<AccessPrefix>& access, BufferChain payload) {
  const MessageFront message(header, access);
  std::string front = ControlDataHeader(message.view().size() + payload.size());
  front.append(message.view());
  out_.Append(Copy(front));
  out_.Append(std::move(payload));
}

bool ControlChannel::Flush() {
  while (!out_.empty() && queued_ < queued_max_) {
    const size_t size = std::min(out_.size(), queued_max_ - queued_);
    queued_ += size;
    reader_.stream().Write(out_.SplitFront(size), [this, size](absl::Status status) {
      queued_ -= size;
      // How sending has failed, reading tells as well; a reset may still have bytes before it.
      if (status.ok()) owner_.OnChannelRoom();
    });
  }
  if (finishing_ && out_.empty()) {
    finishing_ = false;
    reader_.stream().ShutdownWrite();
  }
  return out_.size() <= kBacklogMax;
}

void ControlChannel::Finish() {
  finishing_ = true;
  static_cast<void>(Flush());
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
