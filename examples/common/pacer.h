// Pacer: does things to streams at a later time, wherever they are by then. Belongs to a loop's
// thread, where it is made, used and destroyed, before its loop.
#ifndef PENSTOCK_EXAMPLES_COMMON_PACER_H_
#define PENSTOCK_EXAMPLES_COMMON_PACER_H_

#include <penstock/loop.h>
#include <penstock/move.h>

#include <map>

#include "absl/time/time.h"

namespace examples {

class Pacer {
 public:
  explicit Pacer(penstock::Loop& loop) : loop_(loop), timer_(loop) {}
  // Posts `task` to the stream of `handle` at `when`, in the time of the loop; at once when that
  // has passed.
  void At(absl::Time when, penstock::StreamHandle handle, penstock::StreamHandle::Task task);

 private:
  struct Item {
    penstock::StreamHandle handle;
    penstock::StreamHandle::Task task;
  };

  void Arm();
  void PostDue();

  penstock::Loop& loop_;
  penstock::Timer timer_;
  std::multimap<absl::Time, Item> items_;
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_PACER_H_
