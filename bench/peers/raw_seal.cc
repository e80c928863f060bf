// The raw sealed echo server: receive, open, seal, send, and nothing else; what an echo of ALTS
// records costs with OpenSSL's AES-GCM however it is made.
//
//   raw_seal --key-hex=HEX [--max-frame=BYTES] PORT
//
// The ALTS server of ALTSRP_GCM_AES128_REKEY (docs/wire-formats.md). Edge-triggered, one thread,
// and buffers shared by all connections: what one receive brought is opened to one buffer, sealed
// to another and sent at once; the rest of a record that is not whole waits in front of where the
// next bytes go. OpenSSL is called as rarely as it can be: the nonce and the tag are parameters of
// one call, and a record is one EVP_Cipher() and its end. Every connection begins with the same
// key, which is only fit for benches.
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/params.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peer.h"

namespace penstock_bench {
namespace {

constexpr size_t kHeader = 8;
constexpr size_t kTag = 16;
constexpr size_t kOverhead = kHeader + kTag;
constexpr size_t kFrameMost = 128 * 1024;   // of a whole record, in either direction
constexpr size_t kReceiveSize = 64 * 1024;  // as fast as any from 48 to 192 KiB
constexpr size_t kKeySize = 44;             // of the derivation (32), and the nonces' mask (12)

struct Options {
  std::string key;
  size_t frame_max = 16 * 1024;
};

[[noreturn]] void DieOfOpenssl() { Die("OpenSSL", EIO); }

// One direction of a connection: its key, its counter, and OpenSSL's context.
class Direction {
 public:
  Direction(const std::string& key, bool seals) : key_(key), seals_(seals) {
    static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-128-GCM", nullptr);
    if (cipher == nullptr ||
        EVP_CipherInit_ex2(context_.get(), cipher, nullptr, nullptr, seals, nullptr) != 1) {
      DieOfOpenssl();
    }
    nonce_only_[0] =
        OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TLS1_IV_FIXED, nonce_, SIZE_MAX);
    with_tag_[1] = nonce_only_[0];
    with_tag_[0] = tag_only_[0] =
        OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, nullptr, kTag);
    nonce_only_[1] = with_tag_[2] = tag_only_[1] = OSSL_PARAM_construct_end();
  }

  // Seals `size` bytes to a whole record, of kOverhead bytes more.
  void Seal(const char* plain, char* record, size_t size) {
    const uint32_t header[] = {static_cast<uint32_t>(size + kOverhead - 4), 6};
    memcpy(record, header, sizeof header);  // little-endian, as the machines measured are
    char* const body = record + kHeader;
    NextNonce();
    tag_only_[0].data = body + size;
    if (EVP_CIPHER_CTX_set_params(context_.get(), nonce_only_) != 1 || !Pass(plain, body, size) ||
        EVP_CIPHER_CTX_get_params(context_.get(), tag_only_) != 1) {
      DieOfOpenssl();
    }
  }
  // Opens a body of `size` bytes with the tag behind it. False: it is not what the peer sealed.
  bool Open(const char* body, char* plain, size_t size) {
    NextNonce();
    with_tag_[0].data = const_cast<char*>(body + size);
    return EVP_CIPHER_CTX_set_params(context_.get(), with_tag_) == 1 && Pass(body, plain, size);
  }

 private:
  struct Free {
    void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
  };

  bool Pass(const char* in, char* out, size_t size) {
    const int passed = EVP_Cipher(context_.get(), reinterpret_cast<unsigned char*>(out),
                                  reinterpret_cast<const unsigned char*>(in), size);
    return passed == static_cast<int>(size) && EVP_Cipher(context_.get(), nullptr, nullptr, 0) >= 0;
  }

  void NextNonce() {
    if (counter_ % 65536 == 0) SetKey();
    uint64_t mask;
    memcpy(nonce_, key_.data() + 32, sizeof nonce_);
    memcpy(&mask, nonce_, sizeof mask);
    mask ^= counter_++;
    memcpy(nonce_, &mask, sizeof mask);
    if (seals_) nonce_[11] ^= 0x80;  // the server's records
  }
  // HKDF-Expand of one block, with the counter's bytes 2 to 7.
  void SetKey() {
    unsigned char info[7], block[32];
    for (int i = 0; i < 6; ++i) info[i] = static_cast<unsigned char>(counter_ >> (16 + 8 * i));
    info[6] = 1;
    // The nonce given here is replaced by the record's own.
    if (HMAC(EVP_sha256(), key_.data(), 32, info, sizeof info, block, nullptr) == nullptr ||
        EVP_CipherInit_ex2(context_.get(), nullptr, block, nonce_, seals_, nullptr) != 1) {
      DieOfOpenssl();
    }
  }

  const std::string& key_;
  const bool seals_;
  std::unique_ptr<EVP_CIPHER_CTX, Free> context_{EVP_CIPHER_CTX_new()};
  uint64_t counter_ = 0;
  unsigned char nonce_[12] = {};
  OSSL_PARAM nonce_only_[2], with_tag_[3], tag_only_[2];
};

struct Connection {
  Connection(const std::string& key) : open(key, false), seal(key, true) {}

  Direction open, seal;
  std::string rest;     // of a record that is not whole
  std::string pending;  // what send() did not take
};

class SealedEcho {
 public:
  SealedEcho(int listen_fd, Options options) : listen_fd_(listen_fd), options_(std::move(options)) {
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd_ < 0) Die("epoll_create1");
    Watch(listen_fd_, EPOLLIN);
  }

  [[noreturn]] void Run() {
    epoll_event events[kEventsMax];
    for (;;) {
      const int count = epoll_wait(epoll_fd_, events, kEventsMax, -1);
      if (count < 0 && errno != EINTR) Die("epoll_wait");
      for (int i = 0; i < count; ++i) {
        if (events[i].data.fd == listen_fd_) {
          Accept();
        } else {
          OnEvent(events[i].data.fd, events[i].events);
        }
      }
    }
  }

 private:
  void Watch(int fd, uint32_t wanted) {
    epoll_event event = {};
    event.events = wanted;
    event.data.fd = fd;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) < 0) Die("epoll_ctl");
  }

  void Accept() {
    for (;;) {
      const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno == EAGAIN || errno == ECONNABORTED) return;
        Die("accept4");
      }
      if (static_cast<size_t>(fd) >= connections_.size()) connections_.resize(fd + 1);
      connections_[fd] = std::make_unique<Connection>(options_.key);
      Watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    }
  }

  void OnEvent(int fd, uint32_t events) {
    if (Serve(fd, *connections_[fd], events)) return;
    connections_[fd] = nullptr;
    close(fd);
  }

  // False: the connection has ended, or shall.
  bool Serve(int fd, Connection& connection, uint32_t events) {
    if (!connection.pending.empty() && !Send(fd, connection, std::exchange(connection.pending, {})))
      return false;
    // After a short receive, only a hang-up already announced can still be waiting.
    const bool to_end = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    size_t rest = connection.rest.size();
    memcpy(received_ - rest, connection.rest.data(), rest);
    bool more = true;
    while (more && connection.pending.empty()) {
      const ssize_t got = recv(fd, received_, kReceiveSize, 0);
      if (got < 0 && errno == EAGAIN) break;
      if (got <= 0) return false;
      more = got == kReceiveSize || to_end;
      if (!Turn(fd, connection, rest, static_cast<size_t>(got))) return false;
    }
    connection.rest.assign(received_ - rest, rest);
    return true;
  }

  // Of the `rest` bytes before received_ and the `got` behind them: echoes the records that are
  // whole, and leaves the new rest before received_.
  bool Turn(int fd, Connection& connection, size_t& rest, size_t got) {
    const char* at = received_ - rest;
    const char* const end = received_ + got;
    size_t plain = 0;
    while (end - at >= static_cast<ptrdiff_t>(kHeader)) {
      uint32_t length;
      memcpy(&length, at, sizeof length);
      const size_t record = size_t{length} + 4;
      if (record < kOverhead || record > kFrameMost) return false;
      if (static_cast<size_t>(end - at) < record) break;
      if (!connection.open.Open(at + kHeader, plain_ + plain, record - kOverhead)) return false;
      plain += record - kOverhead;
      at += record;
    }
    rest = static_cast<size_t>(end - at);
    memmove(received_ - rest, at, rest);
    return Send(fd, connection, SealAll(connection.seal, plain));
  }

  // The first `size` bytes of plain_ as records.
  std::string_view SealAll(Direction& seal, size_t size) {
    const size_t payload_max = options_.frame_max - kOverhead;
    size_t sealed = 0;
    for (size_t done = 0; done < size;) {
      const size_t payload = std::min(size - done, payload_max);
      seal.Seal(plain_ + done, reply_.get() + sealed, payload);
      done += payload;
      sealed += payload + kOverhead;
    }
    return {reply_.get(), sealed};
  }

  bool Send(int fd, Connection& connection, std::string_view bytes) {
    if (bytes.empty()) return true;
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return false;
    connection.pending.assign(bytes.substr(std::max<ssize_t>(sent, 0)));
    return true;
  }

  static constexpr size_t kPlainMost = kFrameMost + kReceiveSize;

  const int listen_fd_;
  const Options options_;
  int epoll_fd_ = -1;
  std::vector<std::unique_ptr<Connection>> connections_;  // by descriptor
  alignas(64) char wire_[kFrameMost + kReceiveSize];
  char* const received_ = wire_ + kFrameMost;  // where bytes go
  alignas(64) char plain_[kPlainMost];
  // Room for any plaintext in the smallest records there may be.
  std::unique_ptr<char[]> reply_{new char[2 * kPlainMost]};
};

[[noreturn]] void DieOfFlag(const char* program, const char* wrong) {
  fprintf(stderr, "%s: %s\nusage: %s --key-hex=HEX [--max-frame=BYTES] PORT\n", program, wrong,
          program);
  exit(2);
}

// The key's bytes; fewer when there are others than digits.
std::string FromHex(std::string_view digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    uint8_t byte = 0;
    const char* const end = digits.data() + i + 2;
    if (std::from_chars(end - 2, end, byte, 16).ptr != end) break;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

// Takes its flags out of the command line.
Options TakeFlags(int& argc, char** argv) {
  constexpr std::string_view kKey = "--key-hex=", kFrame = "--max-frame=";
  Options options;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg.starts_with(kKey)) {
      options.key = FromHex(arg.substr(kKey.size()));
      if (2 * options.key.size() != arg.size() - kKey.size()) options.key.clear();
    } else if (arg.starts_with(kFrame)) {
      const auto [end, error] =
          std::from_chars(arg.data() + kFrame.size(), arg.data() + arg.size(), options.frame_max);
      if (error != std::errc() || end != arg.data() + arg.size() || options.frame_max < 1024 ||
          options.frame_max > kFrameMost) {
        DieOfFlag(argv[0], "--max-frame: 1024 to 131072 are accepted");
      }
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  if (options.key.size() != kKeySize) DieOfFlag(argv[0], "--key-hex: not 44 bytes in hexadecimal");
  return options;
}

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  Options seal = TakeFlags(argc, argv);
  const PeerOptions options = ParsePeerOptions(argc, argv, {});
  const int listen_fd = ListenOrDie(options.port, SOCK_NONBLOCK);
  static SealedEcho server(listen_fd, std::move(seal));
  AnnouncePeer(listen_fd);
  server.Run();
}
