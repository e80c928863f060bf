// RecordOpener: the receiving half of a sealed stream's codec: received bytes in, plaintext out.
//
// Sans I/O: it owns one direction's keys and counter and the bytes of the record that is not
// complete yet. One thread at a time. Records are decrypted where they lie, piece by piece, when
// they are in whole; plaintext is a window onto the received block and leaves only after the
// record's tag was verified (I8). The first error is the last word: it is repeated for ever, what
// was decrypted is wiped, and nothing that follows is looked at.
//
// Memory: nothing is allocated for a length that a header announces. After Rest() an opener holds
// nothing between records, and within one at most max(256, 2 x received) bytes.
#ifndef PENSTOCK_SECURE_RECORD_OPENER_H_
#define PENSTOCK_SECURE_RECORD_OPENER_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "buffer/compact_chain.h"
#include "secure/cipher_contexts.h"
#include "secure/record_format.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class RecordOpener {
 public:
  enum class Result : uint8_t {
    kData,      // plaintext; there may be more
    kNeedMore,  // every whole record has been opened
    kAgain,  // enough work for one call, no plaintext in it: call again, in another turn if need be
    kNoRoom,  // the pool refused a block; nothing is lost, call again when it has room
    kEnd,     // native mode: the authenticated end of the stream
    kError,   // status() says why, now and for ever
  };

  // `pool` must outlive this. `frame_max`: the largest whole record in bytes that is accepted,
  // brought into [kRecordOverhead, kRecordFrameMax].
  RecordOpener(RecordCipher cipher, BufferPool& pool, RecordMode mode, uint32_t frame_max);

  // Appends received bytes; ignored after an error. A block that others see too (Share(), external
  // memory) is left as it is: its records are decrypted to blocks of the opener's own.
  void Feed(Buffer wire);

  // The next plaintext, never empty. One record may come in several buffers, and several small ones
  // in one. Bounded work: one record that is not small, or 64 small or empty ones.
  //
  // Errors: InvalidArgument for a header out of bounds or bytes after the end; Unauthenticated for
  // a record that was not sealed as this direction's next; ResourceExhausted when the counter is
  // used up; Internal when the cryptographic library fails.
  Result Next(Buffer& out);

  // The stream below has ended, and Next has said kNeedMore or kEnd. How this one ended: OutOfRange
  // (IsEof), with IsUnauthenticatedEof where nobody vouched for it; DataLoss when bytes are
  // missing; or the error there was before.
  absl::Status OnWireEnd();

  // Next has said kNeedMore, and there is nothing to feed: keeps the bound above from here on,
  // unless the pool has no room to compact into.
  void Rest();
  // Bytes of the blocks held.
  size_t pinned_bytes() const {
    return wire_.block_bytes() + resting_.pinned_bytes() + plain_.block_bytes();
  }

  const absl::Status& status() const { return status_; }
  uint32_t frame_max() const { return frame_max_; }
  RecordMode mode() const { return mode_; }
  KeySchedule& keys() { return cipher_.keys(); }

  // Changes loops: between the two, on the one thread and then the other, nothing else may be
  // called.
  void Leave() { cipher_.Leave(); }
  void Join(std::shared_ptr<CipherContexts> contexts, BufferPool& pool) {
    cipher_.Join(std::move(contexts));
    pool_ = &pool;
  }

 private:
  enum class End : uint8_t { kNone, kOpened, kTold };  // of the stream, in native mode

  // Opens records that lie whole in the front buffer; kNeedMore when the first one does not.
  Result OpenFront(Buffer& out);
  // Takes `taken` bytes off the front buffer and returns the window of `size` at `at` in them.
  Buffer CutFront(size_t at, size_t size, size_t taken);
  // Opens the record at the front, in however many pieces it came.
  Result OpenGathered(Buffer& out);
  absl::Status Decrypt(size_t payload, Buffer& own);
  // One record lying in one piece.
  absl::Status DecryptAt(char* body, size_t payload);
  bool Scattered(size_t payload) const;
  // All received bytes are in wire_, unless resting_ holds a part of a record.
  bool Wake();
  Result Fail(absl::Status status);

  RecordCipher cipher_;
  BufferPool* pool_;
  const RecordMode mode_;
  End end_ = End::kNone;
  bool foreign_ = false;  // there are, or were since there was nothing, bytes that others may see
  uint8_t header_size_ = 0;
  char header_[kRecordHeaderSize];  // of the record whose body follows
  const uint32_t frame_max_;
  // What was received and not opened is in one of the two: in resting_ from a Rest() within a
  // record until the record is whole.
  BufferChain wire_;
  CompactChain resting_;
  BufferChain plain_;  // verified, not handed out yet
  absl::Status status_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_RECORD_OPENER_H_
