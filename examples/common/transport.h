// The flag with which an example program chooses what carries its streams.
//
//   --transport=tcp    the streams themselves
//   --transport=rdma   RDMA endpoints over them (AsStream); both sides must choose it. Which
//                      device they use: see rdma_device.h.
#ifndef PENSTOCK_EXAMPLES_COMMON_TRANSPORT_H_
#define PENSTOCK_EXAMPLES_COMMON_TRANSPORT_H_

#include <penstock/stream.h>

namespace examples {

class Transport {
 public:
  // Ends the program when the flag makes no sense.
  static Transport FromFlags();

  // What is to be used in place of `stream`, which was made with these options.
  penstock::StreamPtr Apply(penstock::StreamPtr stream, bool listens,
                            const penstock::StreamOptions& options) const;

 private:
  bool rdma_ = false;
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_TRANSPORT_H_
