// Echo over standalone Asio on its epoll reactor, written as its documentation writes one: a
// session object with its own 16 KiB buffer, async_read_some, async_write.
//
//   asio_echo PORT
#include <array>
#include <asio.hpp>
#include <memory>
#include <utility>

#include "peer.h"

namespace penstock_bench {
namespace {

class Session : public std::enable_shared_from_this<Session> {
 public:
  explicit Session(asio::ip::tcp::socket socket) : socket_(std::move(socket)) {}

  void Read() {
    socket_.async_read_some(asio::buffer(buffer_),
                            [self = shared_from_this()](std::error_code error, size_t size) {
                              if (!error) self->Write(size);
                            });
  }

 private:
  void Write(size_t size) {
    asio::async_write(socket_, asio::buffer(buffer_, size),
                      [self = shared_from_this()](std::error_code error, size_t) {
                        if (!error) self->Read();
                      });
  }

  asio::ip::tcp::socket socket_;
  std::array<char, kReadSize> buffer_;
};

void Accept(asio::ip::tcp::acceptor& acceptor) {
  acceptor.async_accept([&acceptor](std::error_code error, asio::ip::tcp::socket socket) {
    if (error) Die("accept", error.value());
    std::make_shared<Session>(std::move(socket))->Read();
    Accept(acceptor);
  });
}

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  PeerOptions options = ParsePeerOptions(argc, argv, {});
  int listen_fd = ListenOrDie(options.port, 0);
  asio::io_context context(1);
  asio::ip::tcp::acceptor acceptor(context, asio::ip::tcp::v4(), listen_fd);
  Accept(acceptor);
  AnnouncePeer(listen_fd);
  context.run();
}
