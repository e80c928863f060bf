// The flag with which an example program chooses what carries its streams.
//
//   --transport=tcp    the streams themselves
//   --transport=rdma   RDMA endpoints over them (AsStream); both sides must choose it. Which
//                      device they use: see rdma_device.h.
#ifndef PENSTOCK_EXAMPLES_COMMON_TRANSPORT_H_
#define PENSTOCK_EXAMPLES_COMMON_TRANSPORT_H_

#include <penstock/loop.h>
#include <penstock/stream.h>

#include <memory>
#include <string>

namespace examples {

class Transport {
 public:
  // Ends the program when the flag makes no sense.
  static Transport FromFlags();

  // Before anybody has come. Ends the program when a flag of the device makes no sense.
  void Prepare(penstock::Loop& loop) const;

  // What is to be used in place of `stream`, which was made with these options.
  penstock::StreamPtr Apply(penstock::StreamPtr stream, bool listens,
                            const penstock::StreamOptions& options) const;
  // What carries the last stream that Apply was given, which must be there still, and why, when
  // that is not what was wanted.
  struct Carrier {
    std::string name = "tcp";  // or device, or stream
    std::string fallback;
  };
  Carrier carrier() const;

 private:
  struct Last;  // its endpoint
  std::shared_ptr<Last> last_;
  bool rdma_ = false;
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_TRANSPORT_H_
