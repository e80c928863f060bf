#include "common/transport.h"

#ifndef PENSTOCK_NO_RDMA
#include <penstock/rdma.h>

#include "common/rdma_device.h"
#endif

#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/program.h"

ABSL_FLAG(std::string, transport, "tcp",
          "tcp, or rdma: RDMA endpoints, over the same connections; both sides must agree");

namespace examples {

#ifndef PENSTOCK_NO_RDMA
struct Transport::Last {
  const penstock::RdmaEndpoint* endpoint = nullptr;
};
#else
struct Transport::Last {};
#endif

Transport Transport::FromFlags() {
  const std::string name = absl::GetFlag(FLAGS_transport);
  Transport transport;
  transport.rdma_ = name == "rdma";
  if (!transport.rdma_ && name != "tcp") {
    Fail(absl::StrCat("--transport: '", name, "' is none of tcp, rdma"));
  }
#ifdef PENSTOCK_NO_RDMA
  if (transport.rdma_) Fail("--transport=rdma: this Penstock has no component rdma");
#endif
  transport.last_ = std::make_shared<Last>();
  return transport;
}

void Transport::Prepare(penstock::Loop& loop) const {
#ifndef PENSTOCK_NO_RDMA
  if (rdma_) OpenDeviceOfFlags(loop);
#else
  static_cast<void>(loop);
#endif
}

Transport::Carrier Transport::carrier() const {
#ifndef PENSTOCK_NO_RDMA
  if (last_->endpoint != nullptr) {
    const penstock::RdmaStats stats = last_->endpoint->stats();
    return {.name = stats.over_device ? "device" : "stream", .fallback = stats.fallback};
  }
#endif
  return {};
}

penstock::StreamPtr Transport::Apply(penstock::StreamPtr stream, bool listens,
                                     const penstock::StreamOptions& options) const {
#ifndef PENSTOCK_NO_RDMA
  if (rdma_) {
    // A peer that stores a file answers no ping meanwhile; the transfer has deadlines of its own.
    penstock::RdmaOptions quiet = WithDevice(stream->loop());
    quiet.ping_interval = absl::InfiniteDuration();
    auto endpoint = listens ? penstock::RdmaEndpoint::Accept(std::move(stream), quiet)
                            : penstock::RdmaEndpoint::Connect(std::move(stream), quiet);
    penstock::RdmaEndpoint& opening = *endpoint;  // which the stream keeps
    endpoint->NotifyOpen([&opening](absl::Status opened) {
      if (opened.ok()) TellCarrier(opening.stats());
    });
    last_->endpoint = endpoint.get();
    return penstock::AsStream(std::move(endpoint), options);
  }
#endif
  static_cast<void>(listens);
  static_cast<void>(options);
  return stream;
}

}  // namespace examples
