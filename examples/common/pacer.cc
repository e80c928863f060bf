#include "common/pacer.h"

#include <utility>

namespace examples {

void Pacer::At(absl::Time when, penstock::StreamHandle handle, penstock::StreamHandle::Task task) {
  const auto item = items_.emplace(when, Item{std::move(handle), std::move(task)});
  if (item == items_.begin()) Arm();
}

void Pacer::Arm() {
  if (!items_.empty()) timer_.Arm(items_.begin()->first - loop_.now(), [this] { PostDue(); });
}

void Pacer::PostDue() {
  const absl::Time now = loop_.now();
  while (!items_.empty() && items_.begin()->first <= now) {
    Item item = std::move(items_.extract(items_.begin()).mapped());
    item.handle.Post(std::move(item.task));
  }
  Arm();
}

}  // namespace examples
