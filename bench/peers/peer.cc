#include "peer.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace penstock_bench {
namespace {

constexpr int kBacklog = 4096;

[[noreturn]] void DieOfUsage(const char* program, std::initializer_list<std::string_view> modes,
                             std::string_view wrong) {
  fprintf(stderr, "%s: %.*s\nusage: %s ", program, static_cast<int>(wrong.size()), wrong.data(),
          program);
  if (modes.size() > 0) {
    const char* separator = "[--mode=";
    for (std::string_view mode : modes) {
      fprintf(stderr, "%s%.*s", separator, static_cast<int>(mode.size()), mode.data());
      separator = "|";
    }
    fprintf(stderr, "] ");
  }
  fprintf(stderr, "PORT\n  PORT is 0 (any free port) to 65535\n");
  exit(2);
}

}  // namespace

PeerOptions ParsePeerOptions(int argc, char** argv, std::initializer_list<std::string_view> modes) {
  constexpr std::string_view kModeFlag = "--mode=";
  PeerOptions options;
  if (modes.size() > 0) options.mode = *modes.begin();
  bool have_port = false;
  for (int i = 1; i < argc; ++i) {
    std::string_view arg = argv[i];
    if (arg.substr(0, kModeFlag.size()) == kModeFlag) {
      options.mode = arg.substr(kModeFlag.size());
      if (std::find(modes.begin(), modes.end(), options.mode) == modes.end()) {
        DieOfUsage(argv[0], modes, "unknown mode '" + options.mode + "'");
      }
      continue;
    }
    auto [end, error] = std::from_chars(arg.data(), arg.data() + arg.size(), options.port);
    if (have_port || error != std::errc() || end != arg.data() + arg.size()) {
      DieOfUsage(argv[0], modes, "unexpected argument '" + std::string(arg) + "'");
    }
    have_port = true;
  }
  if (!have_port) DieOfUsage(argv[0], modes, "no PORT given");
  return options;
}

int ListenOrDie(uint16_t port, int flags) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
  if (fd < 0) Die("socket");
  int on = 1;
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) Die("SO_REUSEADDR");
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0) Die("TCP_NODELAY");
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) Die("bind");
  if (listen(fd, kBacklog) < 0) Die("listen");
  return fd;
}

void AnnouncePeer(int listen_fd) {
  sockaddr_in address = {};
  socklen_t length = sizeof address;
  if (getsockname(listen_fd, reinterpret_cast<sockaddr*>(&address), &length) < 0) {
    Die("getsockname");
  }
  signal(SIGTERM, [](int) { _exit(0); });
  printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
  fflush(stdout);
}

void Die(const char* what, int error) {
  fprintf(stderr, "%s: %s\n", what, strerror(error != 0 ? error : errno));
  exit(1);
}

}  // namespace penstock_bench
