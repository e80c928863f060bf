// ControlChannel: the control stream of one endpoint, as messages: control messages, and, when the
// stream carries the data, data messages, both ways.
//
// Owns the stream. Loop's thread. It reads for ever, so that two sides that send at the same time
// never wait for each other, and holds no buffer while nothing comes (I1). What is sent is gathered
// until Flush, and counted until the stream has taken it: HasRoom asks for patience, and a peer
// that takes nothing ends the channel when the stream's own bound is met (I9).
//
// It calls its owner once for each message and once for the end. The owner may destroy it in any of
// these calls.
#ifndef PENSTOCK_RDMA_CONTROL_CHANNEL_H_
#define PENSTOCK_RDMA_CONTROL_CHANNEL_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/framed_reader.h>
#include <penstock/stream.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rdma/control_message.h"
#include "rdma/message_header.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class ControlChannel {
 public:
  class Owner {
   public:
    // `bytes`: all of the message as it came.
    virtual void OnControl(const ControlMessage& message, std::string_view bytes) = 0;
    virtual void OnData(const MessageHeader& header, BufferChain body) = 0;
    // Something that was sent has been taken: HasRoom may have changed.
    virtual void OnChannelRoom() = 0;
    // Nothing more comes: the stream has ended (IsEof and others), or the peer has sent what is no
    // message (InvalidArgument, ResourceExhausted).
    virtual void OnChannelEnd(absl::Status status) = 0;

   protected:
    ~Owner() = default;
  };

  ControlChannel(StreamPtr stream, Owner& owner);
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  // Reads from now on.
  void Start();
  // Encoded control messages.
  void Send(std::string_view control);
  // The payload has kStreamPieceMax bytes at most.
  void SendData(const MessageHeader& header, const std::optional<AccessPrefix>& access,
                BufferChain payload);
  // Whether another piece may be sent now.
  bool HasRoom() const { return queued_ + out_.size() < kQueuedMax; }
  // Bytes that the stream has not been given.
  size_t unsent() const { return out_.size(); }
  // A buffer with a copy of `bytes`, from the pool or, if that is full, from the heap: answers do
  // not wait for room.
  Buffer Copy(std::string_view bytes) const;
  // False: the peer takes nothing while answers to it pile up; the channel is at its end.
  [[nodiscard]] bool Flush();
  // Ends this side after what was sent.
  void Finish();

  Stream& stream() const { return reader_.stream(); }

 private:
  static constexpr size_t kQueuedMax = 256 * 1024;
  static constexpr size_t kBacklogMax = 4 * 1024 * 1024;

  void Read();
  void OnFrame(absl::StatusOr<Frame> frame);
  void OnControlFrame(Frame frame);
  void OnDataFrame(Frame frame);

  FramedReader reader_;
  Owner& owner_;
  BufferChain out_;
  size_t queued_ = 0;
  size_t queued_max_;
  bool finishing_ = false;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_CONTROL_CHANNEL_H_
