// What every peer server of the side-by-side bench shares: its command line, its listening socket
// and its first line of output.
//
// Peers are the programs Penstock is compared with. They use no part of Penstock, run one thread,
// and do nothing that a server of their kind would not do, so that a ratio to one of them is the
// cost of the layer above it.
#ifndef PENSTOCK_BENCH_PEERS_PEER_H_
#define PENSTOCK_BENCH_PEERS_PEER_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace penstock_bench {

// The most bytes a peer takes from a connection in one read. 16 KiB suits echo best: with 64 KiB a
// bulk echo over loopback loses a third of its rate on the machines we measured.
inline constexpr size_t kReadSize = 16 * 1024;

// As many events as one epoll_wait returns: 256 is as fast as 32 and 128; 1024 is 12 % slower.
inline constexpr int kEventsMax = 256;

struct PeerOptions {
  std::string mode;
  uint16_t port = 0;
};

// Parses `PROGRAM [--mode=MODE] PORT`. The first of `modes` is the default. On a wrong command line
// prints what is accepted and exits with status 2.
PeerOptions ParsePeerOptions(int argc, char** argv, std::initializer_list<std::string_view> modes);

// A socket listening on 127.0.0.1:`port` (0: any free port) with TCP_NODELAY, which accepted
// sockets inherit. Exits with status 1 and the reason if that fails. `flags` as in socket(2).
int ListenOrDie(uint16_t port, int flags);

// Prints `listening on 127.0.0.1:PORT`, the line that runners wait for, and arranges for SIGTERM to
// end the process with status 0.
void AnnouncePeer(int listen_fd);

// Prints `what` with the text of errno (or of `error` when it is not 0) and exits with status 1.
[[noreturn]] void Die(const char* what, int error = 0);

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_PEERS_PEER_H_
