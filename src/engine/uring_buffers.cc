#include "engine/uring_buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/error.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kPage = 4096;

size_t RingBytes(uint32_t entries) {
  return (entries * sizeof(io_uring_buf) + kPage - 1) / kPage * kPage;
}

}  // namespace

BufferRing::~BufferRing() {
  if (ring_ != nullptr) sys_.Unmap(ring_, RingBytes(entries_));
}

absl::Status BufferRing::Register(io_uring* ring, uint32_t most, size_t bytes_max) {
  const uint32_t entries = std::bit_ceil(most);  // as the kernel asks; see io_uring_register(2)
  int error = 0;
  void* const memory = sys_.Map(RingBytes(entries), 0, &error);
  if (memory == nullptr) return ErrnoStatus(-error, "map a buffer ring", nullptr);
  io_uring_buf_reg registration{};
  registration.ring_addr = reinterpret_cast<uint64_t>(memory);
  registration.ring_entries = entries;
  registration.bgid = kGroup;
  const int result = sys_.RingRegister(ring->ring_fd, IORING_REGISTER_PBUF_RING, &registration, 1);
  if (result < 0) {
    sys_.Unmap(memory, RingBytes(entries));
    return ErrnoStatus(-result, "register a buffer ring", nullptr);
  }
  ring_ = static_cast<io_uring_buf_ring*>(memory);
  entries_ = entries;
  io_uring_buf_ring_init(ring_);
  most_ = static_cast<uint32_t>(std::min<size_t>(most, bytes_max / kBufferSize));
  wanted_ = std::min(kStart, most_);
  lent_.resize(entries);
  free_ids_.reserve(entries);
  for (uint32_t id = entries; id-- > 0;) free_ids_.push_back(static_cast<uint16_t>(id));
  return absl::OkStatus();
}

void BufferRing::LendMore(PoolCache& cache) {
  if (std::exchange(grow_, false)) wanted_ = std::min(wanted_ * 2, most_);
  while (in_kernel_ < wanted_) {
    Buffer buffer = cache.TryAllocate(kBufferSize, BufferTag::kRing);
    if (!buffer) break;
    const uint16_t id = free_ids_.back();
    free_ids_.pop_back();
    Lend(std::move(buffer), id);
  }
}

void BufferRing::Lend(Buffer buffer, uint16_t id) {
  AddRaw(buffer.mutable_data(), kBufferSize, id);
  lent_[id] = std::move(buffer);
  ++in_kernel_;
}

Buffer BufferRing::Take(uint16_t id, size_t size) {
  Buffer buffer = std::move(lent_[id]);
  free_ids_.push_back(id);
  --in_kernel_;
  SetTag(buffer, BufferTag::kReceive);
  BufferNode& node = *BufferAccess::Node(buffer);
  // A block that was lent again holds what the kernel wrote before, all of it to be wiped.
  if (node.block->secret.load(std::memory_order_relaxed)) node.block->used_end = kBufferSize;
  NodeExtend(node, size);
  return buffer;
}

void BufferRing::TakeBack(uint16_t id) {
  lent_[id].Reset();
  free_ids_.push_back(id);
  --in_kernel_;
}

bool BufferRing::Withdraw(io_uring* ring) {
  io_uring_buf_reg registration{};
  registration.bgid = kGroup;
  return ring_ == nullptr ||
         sys_.RingRegister(ring->ring_fd, IORING_UNREGISTER_PBUF_RING, &registration, 1) == 0;
}

void BufferRing::TakeAllBack() {
  for (Buffer& buffer : lent_) buffer.Reset();
  in_kernel_ = 0;
  most_ = wanted_ = 0;
}

void BufferRing::Trim() {
  wanted_ = std::min(std::max(wanted_ / 2, kStart), most_);
  for (Buffer& buffer : lent_) {
    // The last page stays: debug builds keep the block's guard there.
    if (buffer) sys_.Advise(buffer.mutable_data(), kBufferSize - kPage, MADV_DONTNEED);
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
