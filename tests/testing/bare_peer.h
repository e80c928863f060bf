// BarePeer: an end of a connection that does not use the library: a plain socket, or one of the
// simulated wire. Tests of what serves or makes connections have it on the other side.
//
// One thread. Not to outlive its Environment.
#ifndef PENSTOCK_TESTS_TESTING_BARE_PEER_H_
#define PENSTOCK_TESTS_TESTING_BARE_PEER_H_

#include <penstock/address.h>
#include <penstock/export.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "testing/environment.h"
#include "testing/plain_socket.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class BarePeer {
 public:
  virtual ~BarePeer() = default;

  // The bytes taken, or -errno when none was.
  virtual int64_t Send(std::string_view bytes) = 0;
  // All bytes that wait; what ended the reading goes to `end`: 0 for end of stream, else errno.
  virtual std::string ReceiveAll(int* end) = 0;
  // Until there is something to receive, an end included; false when nothing comes.
  virtual bool AwaitInput() = 0;
};

// One that connects to `address`, in the world of `environment`; null when that is refused at once.
std::unique_ptr<BarePeer> NewPeer(Environment& environment, const SocketAddress& address);

// An address where nobody listens.
SocketAddress DeafAddress(Environment& environment);

// An address where nobody ever answers, as long as this lives.
class SilentListener {
 public:
  explicit SilentListener(Environment& environment);
  const SocketAddress& address() const { return address_; }

 private:
  std::vector<PlainSocket> sockets_;
  SocketAddress address_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_BARE_PEER_H_
