#include "secure/record_sealer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "buffer/block.h"
#include "buffer/heap_buffer.h"
#include "secure/record_format.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Records are sealed to blocks of at most this size, the class for 64 KiB of payload: a larger one
// would not stay in the processor's cache until it is sent.
constexpr size_t kSealBlockMax = 66048;
// A record larger than that is spread over blocks of this size.
constexpr size_t kSpreadBlock = 65536;
constexpr size_t kRecordMin = kRecordOverhead + 1;
// The largest record sealed to the heap.
constexpr size_t kHeapRecordMax = 4096;
// A record stays in its plaintext's block when that is at most of this size, or of as many times
// its own: it may lie there until the peer reads.
constexpr size_t kSmallBlock = 4096;
constexpr size_t kBlockToRecordMax = 4;

// Whether a record fits around its plaintext where that lies, and nobody else sees the block.
bool HasRoomAround(const BufferNode& plain) {
  const Block& block = *plain.block;
  return NodeTailroom(plain) >= kAeadTagSize &&
         static_cast<size_t>(plain.data - block.base) >= kRecordHeaderSize &&
         BlockSize(block) <= std::max(kSmallBlock, plain.size * kBlockToRecordMax);
}

}  // namespace

RecordSealer::RecordSealer(RecordCipher cipher, BufferPool& pool, RecordMode mode,
                           uint32_t frame_max)
    : cipher_(std::move(cipher)),
      pool_(&pool),
      mode_(mode),
      frame_max_(std::clamp<uint32_t>(frame_max, kRecordMin, kRecordFrameMax)) {}

RecordSealer::Result RecordSealer::Seal(BufferChain& plain, BufferChain& wire, size_t wire_max) {
  if (!status_.ok()) return Result::kError;
  if (ended_ && !plain.empty()) {
    return Fail(absl::FailedPreconditionError("seal record: the end of the stream was sealed"));
  }
  short_of_room_ = false;
  if (SealsLone(plain, wire_max)) {
    if (const Result result = SealLone(plain, wire); !short_of_room_) return result;
  }
  return SealBatches(plain, wire, wire_max);
}

RecordSealer::Result RecordSealer::SealBatches(BufferChain& plain, BufferChain& wire,
                                               size_t wire_max) {
  bool progress = false;
  // Whoever was refused a record's room does not ask for the same again in one call.
  bool refused = short_of_room_;
  while (!plain.empty()) {
    if (progress && refused) break;
    const uint64_t counters = keys().counter_last() - keys().counter();
    if (counters == 0) {
      if (progress) break;
      return Fail(absl::ResourceExhaustedError(
          absl::StrCat("seal record: all ", keys().counter_last(), " counters are used")));
    }
    size_t record = std::min<size_t>(plain.size() + kRecordOverhead, frame_max_);
    if (record > wire_max) {
      if (progress) break;
      record = std::min(record, std::max(wire_max, kRecordMin));
    }
    size_t batch = record;
    if (counters > kSealBlockMax / kRecordMin) {
      batch = std::max(batch, PlanBatch(plain.size(), wire_max));
    }
    BufferChain block;
    if (!refused) block = AllocateWire(batch);
    short_of_room_ |= block.empty();
    if (block.empty() && batch > record) block = AllocateWire(record);
    if (block.empty()) {
      if (progress) break;
      refused = true;
      block = HeapBuffer(std::string(std::min(record, kHeapRecordMax), '\0'));
    }
    ChainCursor from(plain), to(block);
    size_t consumed = 0;
    for (size_t left = block.size(); left > 0;) {
      const size_t payload = std::min<size_t>(left, frame_max_) - kRecordOverhead;
      if (!SealRecord(from, to, payload)) return FailOfLibrary();
      consumed += payload;
      left -= payload + kRecordOverhead;
    }
    wire_max -= std::min(wire_max, block.size());
    wire.Append(std::move(block));
    progress = true;
    // Last, for releasing external memory may call anything.
    plain.TrimFront(consumed);
  }
  return Result::kSealed;
}

bool RecordSealer::SealsLone(const BufferChain& plain, size_t wire_max) const {
  const BufferNode* const piece = BufferAccess::Head(plain);
  return piece != nullptr && piece->next == nullptr &&
         piece->size + kRecordOverhead <= std::min<size_t>(frame_max_, wire_max) &&
         piece->size + kRecordOverhead <= kSealBlockMax &&
         cipher_.keys().counter() != cipher_.keys().counter_last();
}

RecordSealer::Result RecordSealer::SealLone(BufferChain& plain, BufferChain& wire) {
  BufferNode& piece = *BufferAccess::Head(plain);
  if (HasRoomAround(piece)) return SealInPlace(plain, wire);
  Buffer block = pool_->TryAllocate(piece.size + kRecordOverhead, BufferTag::kSeal);
  short_of_room_ = !block;
  if (short_of_room_) return Result::kSealed;
  BufferNode& record = *BufferAccess::Node(block);
  if (!SealTo(piece.data, record.data, piece.size)) return FailOfLibrary();
  NodeExtend(record, piece.size + kRecordOverhead);
  BufferAccess::Append(wire, BufferAccess::Release(std::move(block)));
  // Last, for releasing external memory may call anything.
  plain.Clear();
  return Result::kSealed;
}

RecordSealer::Result RecordSealer::SealInPlace(BufferChain& plain, BufferChain& wire) {
  BufferNode& piece = *BufferAccess::Head(plain);
  char* const record = piece.data - kRecordHeaderSize;
  const size_t payload = piece.size;
  if (!SealTo(piece.data, record, payload)) return FailOfLibrary();
  BufferNode* const sealed = BufferAccess::Release(BufferAccess::PopFront(plain));
  sealed->data = record;
  sealed->size = 0;
  NodeExtend(*sealed, payload + kRecordOverhead);
  BufferAccess::Append(wire, sealed);
  return Result::kSealed;
}

bool RecordSealer::SealTo(const char* plain, char* record, size_t payload) {
  WriteRecordHeader(record, payload);
  char* const body = record + kRecordHeaderSize;
  return cipher_.SealPiece(plain, body, payload, body + payload);
}

size_t RecordSealer::PlanBatch(size_t plain, size_t wire_max) const {
  const size_t room = std::min(wire_max, kSealBlockMax);
  const size_t payload_max = frame_max_ - kRecordOverhead;
  const size_t whole = std::min(plain / payload_max, room / frame_max_);
  const size_t batch = whole * frame_max_;
  const size_t rest = plain - whole * payload_max;
  const bool takes_rest = rest > 0 && rest < payload_max && rest + kRecordOverhead <= room - batch;
  return takes_rest ? batch + rest + kRecordOverhead : batch;
}

BufferChain RecordSealer::AllocateWire(size_t size) {
  BufferChain wire;
  while (size > 0) {
    size_t n = size;
    if (n > kSealBlockMax) {
      n = kSpreadBlock;
      // The tag is written in one piece: it lies in the last block whole.
      if (size - n < kAeadTagSize) n -= kAeadTagSize;
    }
    Buffer block = pool_->TryAllocate(n, BufferTag::kSeal);
    if (!block) return BufferChain();
    block.Extend(n);
    wire.Append(std::move(block));
    size -= n;
  }
  return wire;
}

bool RecordSealer::SealRecord(ChainCursor& plain, ChainCursor& wire, size_t payload) {
  Aead* aead = cipher_.StartSeal();
  if (aead == nullptr) return false;
  WriteRecordHeader(wire.here(), payload);
  wire.Skip(kRecordHeaderSize);
  while (payload > 0) {
    const size_t n = std::min({payload, plain.room(), wire.room()});
    if (!aead->Update(plain.here(), wire.here(), n)) return false;
    plain.Skip(n);
    wire.Skip(n);
    payload -= n;
  }
  if (!aead->FinishSeal(wire.here())) return false;
  wire.Skip(kAeadTagSize);
  return true;
}

RecordSealer::Result RecordSealer::SealEnd(BufferChain& wire) {
  if (!status_.ok()) return Result::kError;
  if (mode_ != RecordMode::kNative || ended_) {
    return Fail(absl::FailedPreconditionError(ended_ ? "seal end: it was sealed before"
                                                     : "seal end: gRPC mode has no end record"));
  }
  if (keys().counter() == keys().counter_last()) {
    return Fail(absl::ResourceExhaustedError("seal end: all counters are used"));
  }
  BufferChain block = AllocateWire(kRecordOverhead);
  if (block.empty()) block = HeapBuffer(std::string(kRecordOverhead, '\0'));
  ChainCursor nothing{BufferChain()}, to(block);
  if (!SealRecord(nothing, to, 0))
    return Fail(absl::InternalError("seal end: the cryptographic library failed"));
  ended_ = true;
  wire.Append(std::move(block));
  return Result::kSealed;
}

RecordSealer::Result RecordSealer::FailOfLibrary() {
  return Fail(absl::InternalError("seal record: the cryptographic library failed"));
}

RecordSealer::Result RecordSealer::Fail(absl::Status status) {
  status_ = std::move(status);
  return Result::kError;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
