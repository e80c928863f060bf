// PlainSocket: a peer that does not use the library: a plain non-blocking kernel socket that a test
// can make misbehave. Never blocks; Receive and Send return what recv(2) and send(2) do, with
// -errno.
#ifndef PENSTOCK_TESTS_TESTING_PLAIN_SOCKET_H_
#define PENSTOCK_TESTS_TESTING_PLAIN_SOCKET_H_

#include <penstock/address.h>
#include <penstock/export.h>

#include <cstdint>
#include <string>
#include <string_view>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PlainSocket {
 public:
  // Connects without waiting; the kernel completes it from the listener's backlog.
  static PlainSocket Connect(const SocketAddress& address);
  // Listens on `address`; nothing is accepted before Accept.
  static PlainSocket Listen(const SocketAddress& address, int backlog);

  PlainSocket() = default;
  explicit PlainSocket(int fd) : fd_(fd) {}
  PlainSocket(PlainSocket&& other) noexcept;
  PlainSocket& operator=(PlainSocket&& other) noexcept;
  ~PlainSocket() { Close(); }

  bool valid() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  SocketAddress local() const;

  // An invalid socket when none waits.
  PlainSocket Accept();
  // Repeats until the kernel takes no more; returns the bytes taken, or -errno when it took none.
  int64_t Send(std::string_view bytes, int flags = 0);
  int64_t Receive(char* data, size_t size);
  // All bytes that wait; what ended the reading goes to `end`: 0 for end of stream, else errno.
  std::string ReceiveAll(int* end);
  void ShutdownWrite();
  void SetOption(int level, int name, int value);
  // Closes so that a TCP peer sees a reset.
  void Reset();
  void Close();

 private:
  int fd_ = -1;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_PLAIN_SOCKET_H_
