#include "secure/record_opener.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "buffer/block.h"
#include "secure/chain_cursor.h"
#include "secure/wipe.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// What leaves together: a block of this size stays in the processor's cache until it is sealed
// again and sent.
constexpr size_t kTogetherMax = 65536;
constexpr int kTogetherRecordsMax = 64;

[[gnu::cold]] absl::Status CountersUsed() {
  return absl::ResourceExhaustedError("open record: all counters are used");
}

}  // namespace

RecordOpener::RecordOpener(RecordCipher cipher, BufferPool& pool, RecordMode mode,
                           uint32_t frame_max)
    : cipher_(std::move(cipher)),
      pool_(&pool),
      mode_(mode),
      frame_max_(std::clamp<uint32_t>(frame_max, kRecordOverhead, kRecordFrameMax)) {}

void RecordOpener::Feed(Buffer wire) {
  const BufferNode* const node = BufferAccess::Node(wire);
  if (!status_.ok() || node == nullptr || node->size == 0) return;
  // The only window sees nobody beside it, and windows cut from it never overlap; so once is enough
  // to ask.
  const Block& block = *node->block;
  if (block.core == nullptr || block.windows.load(std::memory_order_acquire) != 1) foreign_ = true;
  if (resting_.empty()) {
    BufferAccess::Append(wire_, BufferAccess::Release(std::move(wire)));
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
  if (end_ == End::kNone) {
    const Result result = Open(out);
    if (wire_.empty()) foreign_ = false;
    if (result != Result::kAgain || end_ == End::kNone) return result;
  }
  if (end_ == End::kTold && !wire_.empty()) {
    return Fail(absl::InvalidArgumentError("open record: bytes after the end of the stream"));
  }
  end_ = End::kTold;
  return Result::kEnd;
}

RecordOpener::Result RecordOpener::Open(Buffer& out) {
  if (wire_.empty()) return Result::kNeedMore;
  if (const size_t payload = LonePayload(); payload > 0) return OpenLone(payload, out);
  const Run run = FindRun(kTogetherRecordsMax);
  if (!status_.ok()) return Fail(std::move(status_));
  if (run.records == 0) {
    TakeHeader();
    return Result::kNeedMore;
  }
  if (run.together) {
    const Result result = OpenTogether(run, out);
    if (result != Result::kNoRoom || foreign_) return result;
  }
  return OpenInPlace(run, out);
}

size_t RecordOpener::LonePayload() const {
  const BufferNode& record = *BufferAccess::Head(wire_);
  if (header_size_ > 0 || foreign_ || record.next != nullptr || record.size < kRecordOverhead ||
      !IsRecordHeader(record.data, frame_max_)) {
    return 0;
  }
  const size_t payload = RecordPayloadSize({record.data, kRecordHeaderSize});
  return payload == record.size - kRecordOverhead ? payload : 0;
}

RecordOpener::Result RecordOpener::OpenLone(size_t payload, Buffer& out) {
  if (keys().exhausted()) return Fail(CountersUsed());
  BufferNode& record = *BufferAccess::Head(wire_);
  char* const body = record.data + kRecordHeaderSize;
  const Aead::Opened opened = cipher_.OpenPiece(body + payload, body, body, payload);
  if (opened != Aead::Opened::kGood) [[unlikely]] {
    WipeSecret(body, payload);
    return Fail(NotOpened(opened == Aead::Opened::kForged));
  }
  out = BufferAccess::PopFront(wire_);
  record.data = body;
  record.size = payload;
  return Result::kData;
}

RecordOpener::Run RecordOpener::FindRun(int records_max) {
  Run run;
  ChainCursor cursor(wire_);
  size_t left = wire_.size();
  char header[kRecordHeaderSize];
  size_t known = header_size_;
  std::memcpy(header, header_, known);
  while (run.records < records_max) {
    const size_t more = std::min(kRecordHeaderSize - known, left);
    cursor.Read(header + known, more);
    if (known + more < kRecordHeaderSize || !IsRecordHeader(header, frame_max_)) {
      if (run.records == 0) status_ = CheckRecordHeader({header, known + more}, frame_max_);
      break;
    }
    known = 0;
    left -= more;
    const size_t payload = RecordPayloadSize({header, kRecordHeaderSize});
    if (left < payload + kAeadTagSize) break;
    if (run.plain > 0 && run.plain + payload > kTogetherMax) break;
    ++run.records;
    if (payload == 0 && mode_ == RecordMode::kNative) break;  // nothing may follow
    if (payload > 0) {
      const bool in_pieces = cursor.room() < payload && payload <= kTogetherMax;
      run.together |= run.plain > 0 || in_pieces || foreign_;
      if (run.plain == 0) run.first_plain = payload;
      run.plain += payload;
    }
    left -= payload + kAeadTagSize;
    if (left == 0) break;
    cursor.Advance(payload + kAeadTagSize);
  }
  return run;
}

RecordOpener::Result RecordOpener::OpenTogether(const Run& run, Buffer& out) {
  size_t room = run.plain;
  Buffer own = pool_->TryAllocate(room, BufferTag::kSeal);
  if (!own) own = pool_->TryAllocate(room = run.first_plain, BufferTag::kSeal);
  if (!own) return Result::kNoRoom;
  own.Extend(room);
  char* const base = own.mutable_data();
  size_t opened = 0, passed = 0;
  absl::Status status;
  ChainCursor cursor(wire_);
  for (int i = 0; i < run.records; ++i) {
    cursor.Read(header_ + header_size_, kRecordHeaderSize - header_size_);
    const size_t payload = RecordPayloadSize({header_, kRecordHeaderSize});
    if (payload > room - opened) break;
    status = Decrypt(cursor, payload, base + opened);
    if (!status.ok()) break;
    passed += kRecordOverhead - header_size_ + payload;
    header_size_ = 0;
    opened += payload;
    if (payload == 0 && mode_ == RecordMode::kNative) end_ = End::kOpened;
  }
  wire_.TrimFront(passed);
  if (!status.ok()) Fail(std::move(status));
  if (opened == 0) return Result::kError;
  own.Truncate(opened);
  out = std::move(own);
  return Result::kData;
}

RecordOpener::Result RecordOpener::OpenInPlace(const Run& run, Buffer& out) {
  for (int i = 0; i < run.records; ++i) {
    TakeHeader();
    const size_t payload = RecordPayloadSize({header_, kRecordHeaderSize});
    ChainCursor cursor(wire_);
    absl::Status status = Decrypt(cursor, payload, nullptr);
    if (!status.ok()) return Fail(std::move(status));
    header_size_ = 0;
    if (payload > 0) {
      out = Cut(payload);
      return Result::kData;
    }
    wire_.TrimFront(kAeadTagSize);
    if (mode_ == RecordMode::kNative) end_ = End::kOpened;
  }
  return Result::kAgain;
}

void RecordOpener::TakeHeader() {
  const size_t taken =
      wire_.CopyTo({header_ + header_size_, kRecordHeaderSize - size_t{header_size_}});
  wire_.TrimFront(taken);
  header_size_ = static_cast<uint8_t>(header_size_ + taken);
}

Buffer RecordOpener::Cut(size_t payload) {
  if (wire_.front().size() == payload + kAeadTagSize) {
    Buffer whole = wire_.PopFront();
    whole.Truncate(payload);
    return whole;
  }
  plain_ = wire_.SplitFront(payload);
  wire_.TrimFront(kAeadTagSize);
  return plain_.PopFront();
}

absl::Status RecordOpener::Decrypt(ChainCursor& from, size_t payload, char* to) {
  if (keys().exhausted()) {
    return CountersUsed();
  }
  const ChainCursor body = from;
  ChainCursor end = from;
  end.Advance(payload);
  char joined[kAeadTagSize];
  const char* tag = joined;
  if (end.room() >= kAeadTagSize) {
    tag = end.here();
    end.Skip(kAeadTagSize);
  } else {
    end.Read(joined, kAeadTagSize);
  }
  Aead* aead = cipher_.StartOpen(tag);
  bool working = aead != nullptr;
  for (size_t done = 0; working && done < payload;) {
    const size_t n = std::min(payload - done, from.room());
    working = aead->Update(from.here(), to != nullptr ? to + done : from.here(), n);
    from.Skip(n);
    done += n;
  }
  from = end;
  if (working && aead->FinishOpen()) return absl::OkStatus();
  if (to != nullptr) {
    WipeSecret(to, payload);
  } else {
    ChainCursor wiped = body;
    for (size_t left = payload; left > 0;) {
      const size_t n = std::min(left, wiped.room());
      WipeSecret(wiped.here(), n);
      wiped.Skip(n);
      left -= n;
    }
  }
  return NotOpened(working);
}

absl::Status RecordOpener::NotOpened(bool judged) {
  if (!judged) return absl::InternalError("open record: the cryptographic library failed");
  return absl::UnauthenticatedError(
      "open record: authentication failed: it was altered, or is not the next of this stream");
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
  // Whole records stay as they came, for whoever reads next.
  if (header_size_ < kRecordHeaderSize && (!plain_.empty() || !AtPartOfRecord())) return;
  while (!wire_.empty()) resting_.Append(wire_.PopFront());
  resting_.Rest(*pool_, BufferTag::kSeal);
}

bool RecordOpener::AtPartOfRecord() {
  if (wire_.empty() || end_ != End::kNone || !status_.ok()) return false;
  const Run run = FindRun(1);
  if (!status_.ok()) Fail(std::move(status_));
  if (run.records > 0 || !status_.ok()) return false;
  TakeHeader();
  return header_size_ == kRecordHeaderSize;
}

bool RecordOpener::Wake() {
  // Rest has seen that the header is in.
  const size_t payload = RecordPayloadSize({header_, kRecordHeaderSize});
  if (resting_.size() < payload + kAeadTagSize) return false;
  // Without room in the pool the first bytes come back in memory of the heap, which nobody else
  // sees.
  wire_ = resting_.SplitFront(resting_.size(), *pool_, BufferTag::kSeal);
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
