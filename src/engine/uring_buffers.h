// BufferRing: the pool buffers lent to the kernel for one io_uring, for receives to fill
// (io_uring_register_buf_ring(3), kernel 5.19).
//
// Owns every buffer it has lent, under BufferTag::kRing: they belong to the loop, not to any
// connection, so an idle connection pins nothing (I1). A few buffers that are used again and again
// stay warm in the processor's cache, so the ring starts small, grows only when the kernel ran out,
// and shrinks when the loop falls quiet. Loop's thread.
#ifndef PENSTOCK_ENGINE_URING_BUFFERS_H_
#define PENSTOCK_ENGINE_URING_BUFFERS_H_

#include <liburing.h>
#include <penstock/buffer.h>
#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/sys.h"
#include "buffer/pool_cache.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class BufferRing {
 public:
  static constexpr uint16_t kGroup = 0;
  static constexpr uint32_t kBufferSize = 16 * 1024;
  static constexpr uint32_t kStart = 32;

  explicit BufferRing(Sys& sys) : sys_(sys) {}
  ~BufferRing();
  BufferRing(const BufferRing&) = delete;
  BufferRing& operator=(const BufferRing&) = delete;

  // A ring of up to `entries` buffers (a power of two, at most 32768) and `bytes_max` bytes, none
  // yet. The io_uring must be gone, or never have used it, when this is destroyed.
  absl::Status Register(io_uring* ring, uint32_t most, size_t bytes_max);

  // Buffers the kernel has.
  uint32_t lent() const { return in_kernel_; }
  // Lends buffers until the kernel has as many as the ring now wants, or the pool refuses; it sees
  // them with the next Publish.
  void Refill(PoolCache& cache) {
    if (grow_ || in_kernel_ < wanted_) [[unlikely]]
      LendMore(cache);
    starved_ = in_kernel_ == 0;
  }
  // The last Refill left the kernel none: a receive armed now would fail at once, data or not.
  bool starved() const { return starved_; }
  // The buffer `id`, filled with `size` bytes by the kernel; it is the caller's.
  Buffer Take(uint16_t id, size_t size);
  // What the kernel has put into buffer `id`, which stays lent; follow with Relend.
  const char* Peek(uint16_t id) const { return BufferAccess::Node(lent_[id])->data; }
  // Lends buffer `id` again as it is.
  void Relend(uint16_t id) {
    if (in_kernel_ > wanted_) [[unlikely]]
      return TakeBack(id);
    AddRaw(BufferAccess::Node(lent_[id])->data, kBufferSize, id);
  }
  // The kernel ran out: the next Refill lends twice as many.
  void Grow() { grow_ = true; }
  // Quiet: want fewer, and give the pages of those lent back to the kernel. Only while the kernel
  // cannot be filling one: between waits of a DEFER_TASKRUN ring whose completions are all seen.
  void Trim();

  // Takes the ring of buffers from the kernel, which finds none in it from now on: it picks one and
  // fills it under the io_uring's lock, which this waits for (io_uring/kbuf.c, Linux 5.19 to 6.1
  // and later), and multishot receives run in the thread that waits for them. What it has filled
  // before may still be taken. False: the kernel would not, as on another thread than the ring's.
  bool Withdraw(io_uring* ring);
  // After that: what was not taken goes back to the pool, and nothing is lent again.
  void TakeAllBack();

  // For the self-test, which has memory of its own.
  void AddRaw(void* data, uint32_t size, uint16_t id) {
    io_uring_buf_ring_add(ring_, data, size, id, io_uring_buf_ring_mask(entries_),
                          static_cast<int>(unpublished_));
    ++unpublished_;
  }
  // Shows the kernel what has been lent, or lent again, since the last time.
  void Publish() {
    if (unpublished_ == 0) return;
    io_uring_buf_ring_advance(ring_, static_cast<int>(std::exchange(unpublished_, 0)));
  }

 private:
  void LendMore(PoolCache& cache);
  void Lend(Buffer buffer, uint16_t id);
  void TakeBack(uint16_t id);

  Sys& sys_;
  io_uring_buf_ring* ring_ = nullptr;
  uint32_t entries_ = 0;
  uint32_t most_ = 0;
  uint32_t wanted_ = kStart;
  uint32_t in_kernel_ = 0;
  uint32_t unpublished_ = 0;
  bool starved_ = false;
  bool grow_ = false;
  std::vector<Buffer> lent_;  // by id; empty when not lent
  std::vector<uint16_t> free_ids_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_URING_BUFFERS_H_
