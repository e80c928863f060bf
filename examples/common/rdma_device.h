// The flags with which an example program chooses its RDMA device.
//
//   --device=auto        the first that there is
//   --device=NAME        that one
//   --device=none        none: the stream between two programs carries the data
//   --gid-index=N        of the address of its port; soft RoCE has IPv4 at 1
//   --lanes=N            queue pairs for each endpoint, 1 to 8: large reads, writes and messages
//   are
//                        spread over them
//   --spin=MICROSECONDS  how long to look for more work instead of sleeping, while traffic is brisk
//
// When it cannot be had, or the peer has none, the stream carries the data; the program says so on
// stderr.
#ifndef PENSTOCK_EXAMPLES_COMMON_RDMA_DEVICE_H_
#define PENSTOCK_EXAMPLES_COMMON_RDMA_DEVICE_H_

#include <penstock/loop.h>
#include <penstock/rdma.h>

namespace examples {

// Judges the flags and opens the device, for the loop of this thread, before anybody has come or is
// called: ends the program when a flag makes no sense.
void OpenDeviceOfFlags(penstock::Loop& loop);

// `options` with the device of the flags, which is opened once for the loop of this thread.
penstock::RdmaOptions WithDevice(penstock::Loop& loop, penstock::RdmaOptions options = {});

// Once it is open: says on stderr what carries the data.
void TellCarrier(const penstock::RdmaStats& stats);

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_RDMA_DEVICE_H_
