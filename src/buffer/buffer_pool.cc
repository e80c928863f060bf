#include <penstock/buffer.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/sys.h"
#include "buffer/pool_cache.h"
#include "buffer/pool_core.h"

PENSTOCK_BEGIN_NAMESPACE

using internal::BufferNode;
using internal::PoolCache;
using internal::PoolCore;

namespace {

BufferNode* Take(PoolCore& core, size_t size, BufferTag tag, PoolCore::Refusal* refusal) {
  PoolCache* cache = PoolCache::CurrentFor(&core);
  return cache != nullptr ? cache->TakeNode(size, tag, refusal) : core.Allocate(size, tag, refusal);
}

}  // namespace

std::unique_ptr<BufferPool> PoolCore::MakePool(const PoolOptions& options, internal::Sys& sys) {
  return std::unique_ptr<BufferPool>(new BufferPool(std::make_unique<PoolCore>(options, sys)));
}

BufferPool::BufferPool(PoolOptions options)
    : core_(std::make_unique<PoolCore>(options, internal::RealSys())) {}

BufferPool::BufferPool(std::unique_ptr<PoolCore> core) : core_(std::move(core)) {}

BufferPool::~BufferPool() {
  // What is still out refers to the core, so both stay.
  if (!core_->Close()) static_cast<void>(core_.release());
}

absl::StatusOr<Buffer> BufferPool::Allocate(size_t size, BufferTag tag) {
  PoolCore::Refusal refusal;
  BufferNode* node = Take(*core_, size, tag, &refusal);
  if (node != nullptr) return Buffer(node);
  if (refusal == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("allocate ", size, " bytes: the pool's limit of ", core_->options().bytes_max,
                     " bytes is reached"));
  }
  return absl::ResourceExhaustedError(absl::StrCat("allocate ", size, " bytes: mmap: errno ",
                                                   -refusal, " (", strerrordesc_np(-refusal), ")"));
}

Buffer BufferPool::TryAllocate(size_t size, BufferTag tag) {
  PoolCore::Refusal refusal;
  return Buffer(Take(*core_, size, tag, &refusal));
}

absl::StatusOr<Buffer> BufferPool::Copy(std::string_view bytes, BufferTag tag) {
  absl::StatusOr<Buffer> buffer = Allocate(bytes.size(), tag);
  if (!buffer.ok() || bytes.empty()) return buffer;
  buffer->Extend(bytes.size());
  std::memcpy(buffer->mutable_data(), bytes.data(), bytes.size());
  return buffer;
}

PoolStats BufferPool::Stats() const { return core_->Stats(); }

void BufferPool::Trim() { core_->Trim(PoolCache::CurrentFor(core_.get())); }

void BufferPool::AddSlabObserver(SlabObserver* observer) { core_->AddSlabObserver(observer); }

void BufferPool::RemoveSlabObserver(SlabObserver* observer) { core_->RemoveSlabObserver(observer); }

bool BufferPool::NotifyRoom(RoomWaiter* waiter) { return core_->NotifyRoom(waiter); }

void BufferPool::ForgetRoom(RoomWaiter* waiter) { core_->ForgetRoom(waiter); }

PENSTOCK_END_NAMESPACE
