// RecordSealer: the sending half of a sealed stream's codec: plaintext chains in, records out.
//
// Sans I/O: it owns one direction's keys and counter, and takes the blocks that records are written
// to from a pool; when that has none, from the heap, a small one for each call: what is queued may
// be what fills the pool, so that sealing it must not wait for room. One thread at a time. A
// counter is used once, whatever happens (I8): an error after a counter was taken ends the sealer
// for good. Plaintext is read where it lies, whoever else holds it; one that nobody else holds,
// with room before and behind it in its block, becomes its record there: an answer written to where
// its question came needs no second block.
#ifndef PENSTOCK_SECURE_RECORD_SEALER_H_
#define PENSTOCK_SECURE_RECORD_SEALER_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "secure/chain_cursor.h"
#include "secure/cipher_contexts.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class RecordSealer {
 public:
  enum class Result : uint8_t {
    kSealed,  // as far as the arguments went
    kError,   // status() says why, now and for ever
  };

  // `pool` must outlive this. `frame_max`: the largest whole record in bytes, brought into
  // [kRecordOverhead + 1, kRecordFrameMax].
  RecordSealer(RecordCipher cipher, BufferPool& pool, RecordMode mode, uint32_t frame_max);

  // Moves bytes from the front of `plain` as records to the end of `wire`, at most
  // max(`wire_max`, kRecordOverhead + 1) bytes of these: records as large as they may be, several
  // to a block. kSealed may leave bytes in `plain`, because of `wire_max` or because the pool
  // refused more than the one small record that there is always memory for. Nothing is made of an
  // empty chain: no empty record ever.
  //
  // Errors: ResourceExhausted when the counter is used up, one record before its last, which gRPC's
  // C++ would not accept; FailedPrecondition after SealEnd; Internal when the cryptographic
  // library fails.
  Result Seal(BufferChain& plain, BufferChain& wire, size_t wire_max);
  // Whether the pool refused a block to the last Seal.
  bool short_of_room() const { return short_of_room_; }
  // Appends the record that ends this direction. Native mode only, and once: FailedPrecondition
  // otherwise.
  Result SealEnd(BufferChain& wire);

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
  // What SealLone does not; the one is not to bear the other's weight.
  [[gnu::noinline]] Result SealBatches(BufferChain& plain, BufferChain& wire, size_t wire_max);
  // The bytes of whole records that the next blocks shall hold.
  size_t PlanBatch(size_t plain, size_t wire_max) const;
  // A chain of `size` bytes of the pool to write to, empty when it refuses.
  BufferChain AllocateWire(size_t size);
  // The usual: `plain` is one piece, and becomes one record. False: not so, and nothing is done.
  bool SealsLone(const BufferChain& plain, size_t wire_max) const;
  Result SealLone(BufferChain& plain, BufferChain& wire);
  // Around the plaintext, where it lies.
  Result SealInPlace(BufferChain& plain, BufferChain& wire);
  bool SealTo(const char* plain, char* record, size_t payload);
  bool SealRecord(ChainCursor& plain, ChainCursor& wire, size_t payload);
  [[gnu::cold]] Result FailOfLibrary();
  [[gnu::cold]] Result Fail(absl::Status status);

  RecordCipher cipher_;
  BufferPool* pool_;
  const RecordMode mode_;
  bool ended_ = false;  // the end record was made
  bool short_of_room_ = false;
  const uint32_t frame_max_;
  absl::Status status_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_RECORD_SEALER_H_
