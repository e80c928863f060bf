// RecordOpener: the receiving half of a sealed stream's codec: received bytes in, plaintext out.
//
// Sans I/O: it owns one direction's keys and counter and the bytes of the record that is not
// complete yet. One thread at a time. A record is decrypted when it is in whole, piece by piece as
// it came, and leaves only after its tag was verified (I8). One that came alone and in one piece is
// decrypted where it lies, so that its plaintext is a window onto the received block; neighbours
// that came together, and pieces of one, are decrypted to one block, so that whoever reads is
// called once for them and writes its answer at once. The first error is the last word: it is
// repeated for ever, what was decrypted of the bad record is wiped, and nothing that follows is
// looked at.
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
#include "secure/chain_cursor.h"
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

  // The next plaintext, never empty. Several records may come in one buffer, and one above 64 KiB,
  // or any when the pool has no room, in several. Bounded work: one record, or 64 of together 64
  // KiB of plaintext.
  //
  // Errors: InvalidArgument for a header out of bounds or bytes after the end; Unauthenticated for
  // a record that was not sealed as this direction's next; ResourceExhausted when the counter is
  // used up; Internal when the cryptographic library fails.
  Result Next(Buffer& out);

  // The stream below has ended, and Next has said kNeedMore or kEnd. How this one ended: OutOfRange
  // (IsEof), with IsUnauthenticatedEof where nobody vouched for it; DataLoss when bytes are
  // missing; or the error there was before.
  absl::Status OnWireEnd();

  // There is nothing to feed: keeps the bound above from here on, whole records that Next was not
  // asked for excepted; on the heap where the pool has no room.
  void Rest();
  // Whether it has bytes in blocks, and whether Next could say something else than kNeedMore.
  bool holds_bytes() const {
    return !wire_.empty() || !plain_.empty() || resting_.pinned_bytes() > 0;
  }
  bool drained() const {
    return wire_.empty() && plain_.empty() && resting_.empty() && end_ == End::kNone &&
           status_.ok();
  }
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

  // Whole records at the front of what was received, as many as may leave together.
  struct Run {
    int records = 0;
    size_t plain = 0;        // bytes of plaintext in them
    size_t first_plain = 0;  // and in the first that has any
    bool together = false;   // to be decrypted to one block
  };

  Result Open(Buffer& out);
  // Bytes of plaintext in what was received, when it is one record and in one piece, which nobody
  // else sees; else 0. So most messages come that are smaller than a record.
  size_t LonePayload() const;
  Result OpenLone(size_t payload, Buffer& out);
  // Of `records_max` records at most. `status_` holds the error of a header that cannot be good; of
  // the first one only.
  Run FindRun(int records_max);
  Result OpenTogether(const Run& run, Buffer& out);
  // Opens up to the first record with plaintext in it.
  Result OpenInPlace(const Run& run, Buffer& out);
  // Takes `payload` bytes of plaintext and the tag behind them off the front.
  Buffer Cut(size_t payload);
  // Moves header bytes to header_, where they rest without a block.
  void TakeHeader();
  // Passes a record's body and tag. To where the body is when `to` is null.
  absl::Status Decrypt(ChainCursor& from, size_t payload, char* to);
  // Whether what was received begins with a part of a record, whose header, if whole, is in header_
  // then; an error of it is told by Next.
  bool AtPartOfRecord();
  // All received bytes are in wire_, unless resting_ holds a part of a record.
  bool Wake();
  // Why a record's body did not become plaintext; `judged`: its tag was looked at.
  [[gnu::cold]] static absl::Status NotOpened(bool judged);
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
