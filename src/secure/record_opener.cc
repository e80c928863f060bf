#include "secure/record_opener.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "buffer/block.h"
#include "secure/chain_cursor.h"
#include "secure/openssl_wipe.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Plaintexts up to this size are moved next to each other: cheaper than a window and a callback for
// each.
constexpr size_t kJoinMax = 2048;
// Records that one call of Next opens when they are small or empty.
constexpr int kRunRecordsMax = 64;
// A record whose pieces are smaller than this on average goes to a block of its own.
constexpr size_t kPieceMin = 1024;
constexpr size_t kGatherMax = 65536;

absl::Status Refused() {
  return absl::UnauthenticatedError(
      "open record: authentication failed: it was altered, or is not the next of this stream");
}

}  // namespace

RecordOpener::RecordOpener(RecordCipher cipher, BufferPool& pool, RecordMode mode,
                           uint32_t frame_max)
    : cipher_(std::move(cipher)),
      pool_(&pool),
      mode_(mode),
      frame_max_(std::clamp<uint32_t>(frame_max, kRecordOverhead, kRecordFrameMax)) {}

void RecordOpener::Feed(Buffer wire) {
  if (!status_.ok() || wire.empty()) return;
  // The only window sees nobody beside it, and windows cut from it never overlap; so once is enough
  // to ask.
  const Block& block = *BufferAccess::Node(wire)->block;
  if (block.core == nullptr || block.windows.load(std::memory_order_acquire) != 1) foreign_ = true;
  if (resting_.empty()) {
    wire_.Append(std::move(wire));
  } else {
    resting_.Append(std::move(wire));
  }
}

RecordOpener::Result RecordOpener::Next(Buffer& out) {
  if (!plain_.empty()) {
    out = plain_.PopFront();
    return Result::kData;
  }
  if (!status_.ok()) return Result::kError;
  if (!resting_.empty() && !Wake()) return Result::kNeedMore;
  Result result = Result::kNeedMore;
  if (end_ == End::kNone) {
    if (header_size_ == 0 && !foreign_) result = OpenFront(out);
    if (result == Result::kNeedMore) result = OpenGathered(out);
    if (wire_.empty()) foreign_ = false;
    if (result != Result::kAgain || end_ == End::kNone) return result;
  }
  if (end_ == End::kTold && !wire_.empty()) {
    return Fail(absl::InvalidArgumentError("open record: bytes after the end of the stream"));
  }
  end_ = End::kTold;
  return Result::kEnd;
}

RecordOpener::Result RecordOpener::OpenFront(Buffer& out) {
  const std::string_view front = wire_.front();
  char* const base = const_cast<char*>(front.data());
  size_t taken = 0, plain_at = 0, plain_size = 0, payload = 0;
  int records = 0;
  absl::Status error;
  do {
    if (front.size() - taken < kRecordHeaderSize) break;
    const std::string_view header = front.substr(taken, kRecordHeaderSize);
    error = CheckRecordHeader(header, frame_max_);
    if (!error.ok()) break;
    payload = RecordPayloadSize(header);
    if (front.size() - taken - kRecordHeaderSize < payload + kAeadTagSize) break;
    if (plain_size > 0 && payload > kJoinMax) break;
    char* const body = base + taken + kRecordHeaderSize;
    error = DecryptAt(body, payload);
    if (!error.ok()) break;
    taken += kRecordOverhead + payload;
    ++records;
    if (payload == 0) {
      if (mode_ == RecordMode::kNative) end_ = End::kOpened;
    } else if (plain_size == 0) {
      plain_at = static_cast<size_t>(body - base);
      plain_size = payload;
    } else {
      std::memmove(base + plain_at + plain_size, body, payload);
      plain_size += payload;
    }
  } while (payload <= kJoinMax && records < kRunRecordsMax && end_ == End::kNone);
  if (plain_size > 0) {
    out = CutFront(plain_at, plain_size, taken);
  } else {
    wire_.TrimFront(taken);
  }
  if (!error.ok()) Fail(std::move(error));
  if (plain_size > 0) return Result::kData;
  if (!status_.ok()) return Result::kError;
  return records > 0 ? Result::kAgain : Result::kNeedMore;
}

Buffer RecordOpener::CutFront(size_t at, size_t size, size_t taken) {
  if (taken == wire_.front().size()) {
    Buffer whole = wire_.PopFront();
    whole.TrimFront(at);
    whole.Truncate(size);
    return whole;
  }
  wire_.TrimFront(at);
  Buffer window = wire_.SplitFront(size).PopFront();
  wire_.TrimFront(taken - at - size);
  return window;
}

RecordOpener::Result RecordOpener::OpenGathered(Buffer& out) {
  if (header_size_ < kRecordHeaderSize) {
    const size_t taken =
        wire_.CopyTo({header_ + header_size_, kRecordHeaderSize - size_t{header_size_}});
    wire_.TrimFront(taken);
    header_size_ = static_cast<uint8_t>(header_size_ + taken);
    absl::Status status = CheckRecordHeader({header_, header_size_}, frame_max_);
    if (!status.ok()) return Fail(std::move(status));
    if (header_size_ < kRecordHeaderSize) return Result::kNeedMore;
  }
  const size_t payload = RecordPayloadSize({header_, kRecordHeaderSize});
  if (wire_.size() < payload + kAeadTagSize) return Result::kNeedMore;
  Buffer own;
  if (payload > 0 && (foreign_ || Scattered(payload))) {
    own = pool_->TryAllocate(payload, BufferTag::kSeal);
    if (!own && foreign_) return Result::kNoRoom;
    if (own) own.Extend(payload);
  }
  absl::Status status = Decrypt(payload, own);
  if (!status.ok()) return Fail(std::move(status));
  header_size_ = 0;
  if (payload == 0) {
    wire_.TrimFront(kAeadTagSize);
    if (mode_ == RecordMode::kNative) end_ = End::kOpened;
    return Result::kAgain;
  }
  if (own) {
    wire_.TrimFront(payload + kAeadTagSize);
    out = std::move(own);
  } else {
    plain_ = wire_.SplitFront(payload);
    wire_.TrimFront(kAeadTagSize);
    out = plain_.PopFront();
  }
  return Result::kData;
}

bool RecordOpener::Scattered(size_t payload) const {
  if (payload > kGatherMax) return false;
  size_t pieces = 1;
  ChainCursor cursor(wire_);
  for (size_t left = payload; left > cursor.room(); ++pieces) {
    left -= cursor.room();
    cursor.Skip(cursor.room());
  }
  return pieces > 1 && payload < pieces * kPieceMin;
}

absl::Status RecordOpener::DecryptAt(char* body, size_t payload) {
  if (keys().exhausted()) {
    return absl::ResourceExhaustedError("open record: all counters are used");
  }
  Aead* aead = cipher_.StartOpen();
  if (aead == nullptr || (payload > 0 && !aead->Update(body, body, payload))) {
    WipeSecret(body, payload);
    return absl::InternalError("open record: the cryptographic library failed");
  }
  if (aead->FinishOpen(body + payload)) return absl::OkStatus();
  WipeSecret(body, payload);
  return Refused();
}

absl::Status RecordOpener::Decrypt(size_t payload, Buffer& own) {
  if (keys().exhausted()) {
    return absl::ResourceExhaustedError("open record: all counters are used");
  }
  Aead* aead = cipher_.StartOpen();
  ChainCursor cursor(wire_);
  bool working = aead != nullptr;
  for (size_t done = 0; working && done < payload;) {
    const size_t n = std::min(payload - done, cursor.room());
    char* const to = own ? own.mutable_data() + done : cursor.here();
    working = aead->Update(cursor.here(), to, n);
    cursor.Skip(n);
    done += n;
  }
  char tag[kAeadTagSize];
  for (size_t done = 0; working && done < kAeadTagSize;) {
    const size_t n = std::min(kAeadTagSize - done, cursor.room());
    std::memcpy(tag + done, cursor.here(), n);
    cursor.Skip(n);
    done += n;
  }
  if (working && aead->FinishOpen(tag)) return absl::OkStatus();
  if (own) {
    WipeSecret(own.mutable_data(), payload);
  } else {
    ChainCursor wiped(wire_);
    for (size_t left = payload; left > 0;) {
      const size_t n = std::min(left, wiped.room());
      WipeSecret(wiped.here(), n);
      wiped.Skip(n);
      left -= n;
    }
  }
  return working ? Refused() : absl::InternalError("open record: the cryptographic library failed");
}

absl::Status RecordOpener::OnWireEnd() {
  if (!status_.ok()) return status_;
  const size_t received = header_size_ + wire_.size() + resting_.size();
  if (end_ != End::kNone) {
    if (received == 0) return absl::OutOfRangeError("end of stream");
    Fail(absl::InvalidArgumentError("open record: bytes after the end of the stream"));
  } else if (received > 0) {
    Fail(absl::DataLossError(
        absl::StrCat("stream truncated: it ended ", received, " bytes into a record")));
  } else if (mode_ == RecordMode::kNative) {
    Fail(absl::DataLossError("stream truncated: it ended without its end record"));
  } else {
    return AsUnauthenticatedEof(
        absl::OutOfRangeError("end of stream, unauthenticated: no record says so in gRPC mode"));
  }
  return status_;
}

void RecordOpener::Rest() {
  if (header_size_ < kRecordHeaderSize) return;
  while (!wire_.empty()) resting_.Append(wire_.PopFront());
  resting_.Rest(*pool_, BufferTag::kSeal);
}

bool RecordOpener::Wake() {
  // Next had said kNeedMore, so the header is in.
  const size_t payload = RecordPayloadSize({header_, kRecordHeaderSize});
  if (resting_.size() < payload + kAeadTagSize) return false;
  wire_ = resting_.SplitFront(resting_.size(), *pool_, BufferTag::kSeal);
  // Without room in the pool the first bytes come back in memory of the heap.
  if (BufferAccess::Head(wire_)->block->core == nullptr) foreign_ = true;
  return true;
}

RecordOpener::Result RecordOpener::Fail(absl::Status status) {
  status_ = std::move(status);
  wire_.Clear();
  resting_.Clear();
  header_size_ = 0;
  return Result::kError;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
