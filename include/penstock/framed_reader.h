// FramedReader: reads frames (a header of fixed size that announces the length of a body) off a
// stream, as HTTP/2 and gRPC framing need.
//
// Owns its stream, plain or sealed; write through stream(). Loop's thread. Like the stream, it
// holds no buffer before the first byte and between frames (I1), and at most
// max(256, 2 x the bytes received) while a frame is half received, whatever length it announces. A
// sealed stream below holds as much again, at most, of a record that is half received.
// Bodies are windows onto the buffers they came in: nothing is copied but half-received frames,
// once. An announced length beyond the bound is refused as soon as the header is in.
//
// Callbacks obey the stream's rules: each runs exactly once, never inside the call that started it
// (I3), or is destroyed unrun with the reader or the loop; it may call or destroy the reader, or
// read the next frame; so may the release of external memory that the stream delivered. Of many
// frames that came together 32 are delivered in a row, then others get their turn (I9).
#ifndef PENSTOCK_FRAMED_READER_H_
#define PENSTOCK_FRAMED_READER_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/stream.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// What the frames of a stream look like. A value.
struct PENSTOCK_EXPORT FrameFormat {
  static constexpr size_t kHeaderMax = 64;

  // The messages of gRPC: one byte, 0 or 1 (compressed), and the length in four, big endian
  // (gRPC over HTTP/2, "Length-Prefixed-Message").
  static FrameFormat Grpc(size_t body_max = size_t{4} << 20);
  // The frames of HTTP/2: the length in three bytes, big endian, and six that are the caller's
  // (RFC 9113, 4.1).
  static FrameFormat Http2(size_t body_max = 16 * 1024);

  // Bytes, 1 to kHeaderMax.
  size_t header_size = 0;
  // Reads the length of the body, in bytes, out of a whole header. An error ends the reading with
  // it; InvalidArgument suits a header that cannot be.
  absl::StatusOr<uint64_t> (*body_size)(std::string_view header) = nullptr;
  // Longest body, in bytes; a frame that announces more ends the reading with RESOURCE_EXHAUSTED.
  size_t body_max = size_t{4} << 20;
};

// One frame. Move-only.
struct Frame {
  std::string_view header() const { return {header_bytes.data(), header_size}; }

  std::array<char, FrameFormat::kHeaderMax> header_bytes{};
  uint8_t header_size = 0;
  BufferChain body;
};

class PENSTOCK_EXPORT FramedReader {
 public:
  using ReadCallback = absl::AnyInvocable<void(absl::StatusOr<Frame>) &&>;

  // Reads what `stream`, which must not be null, has not delivered yet. Nobody else may read it.
  FramedReader(StreamPtr stream, const FrameFormat& format);
  // Destroys the stream.
  ~FramedReader();
  FramedReader(FramedReader&& other) noexcept;
  FramedReader& operator=(FramedReader&& other) noexcept;

  // Calls `done` with the next frame, or with the reason why there is none:
  //   IsEof                the stream ended between two frames
  //   DATA_LOSS            it ended inside one
  //   RESOURCE_EXHAUSTED   a length beyond FrameFormat::body_max was announced
  //   FAILED_PRECONDITION  one is pending already; or the format is none
  // or what the format or the stream say. After an error of the frames or the end of the stream
  // every later read ends the same way; a read deadline or CancelRead lose nothing.
  void ReadFrame(ReadCallback done);
  // Ends a pending ReadFrame with Cancelled, in a later step of the loop: until then it is pending.
  // No byte is lost. No effect when none is pending.
  void CancelRead();

  // For writing, deadlines and ends. Its reads are the reader's.
  Stream& stream() const;
  // Bytes of blocks held for frames that are half received or not yet read. What the stream itself
  // holds is in Stream::stats().
  size_t pinned_bytes() const;

 private:
  class Core;
  struct Drop {
    void operator()(Core* core) const;
  };
  std::unique_ptr<Core, Drop> core_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_FRAMED_READER_H_
