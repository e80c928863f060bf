// One end of a TLS handshake against bytes from a real peer that have been tampered with.
//
// The input of a fuzz target is a program:
//   byte 0       0xff: the rest, but for a byte that chooses certificates or a PSK as this one does
//                otherwise, is given to the end as it is, after the end's own first bytes
//                else: bit 0 chooses certificates or a PSK, bits 1.. how many bytes are given at
//                once (0: all)
//   4 bytes each an edit of the stream towards the end: what to do, where (u16, little endian), by
//                what
// Not for production: it aborts when the end does what no end may do.
#ifndef PENSTOCK_TESTS_FUZZ_HANDSHAKE_MUTATION_H_
#define PENSTOCK_TESTS_FUZZ_HANDSHAKE_MUTATION_H_

#include <penstock/export.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "testing/handshake_pair.h"
#include "testing/handshake_pump.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct StreamEdit {
  enum What { kFlip, kDelete, kInsert, kCut };
  What what = kFlip;
  size_t at = 0;
  uint8_t by = 0;
};

class HandshakeMutation {
 public:
  explicit HandshakeMutation(std::string_view program) {
    for (; program.size() >= 4; program.remove_prefix(4)) {
      const auto byte = [&](size_t i) { return static_cast<uint8_t>(program[i]); };
      edits_.push_back({.what = static_cast<StreamEdit::What>(byte(0) % 4),
                        .at = byte(1) + size_t{256} * byte(2),
                        .by = byte(3)});
    }
  }

  // `bytes` are the next ones of the stream.
  void Apply(std::string& bytes) {
    if (cut_) bytes.clear();
    const size_t begin = position_;
    position_ += bytes.size();
    for (const StreamEdit& edit : edits_) {
      if (edit.at < begin || edit.at >= position_) continue;
      const size_t at = std::min(edit.at - begin, bytes.size());
      if (edit.what == StreamEdit::kFlip && at < bytes.size()) {
        bytes[at] = static_cast<char>(bytes[at] ^ edit.by);
      } else if (edit.what == StreamEdit::kDelete) {
        bytes.erase(at, edit.by);
      } else if (edit.what == StreamEdit::kInsert) {
        bytes.insert(at, size_t{edit.by} % 64, static_cast<char>(edit.by));
      } else if (edit.what == StreamEdit::kCut) {
        bytes.resize(at);
        cut_ = true;
      }
    }
  }

 private:
  std::vector<StreamEdit> edits_;
  size_t position_ = 0;
  bool cut_ = false;
};

inline void Require(bool holds) {
  if (!holds) std::abort();
}

inline CredentialsPtr FuzzPsk() {
  return *TlsPskCredentials({{.identity = "pump", .key = SecretKey(std::string(32, 'k'))}});
}

// What holds of an end however it was treated.
inline void CheckEnd(PumpEnd& end) {
  if (end.failed()) {
    Require(!end.error().ok());
    const Handshaker::Progress again = end.handshaker().Step("more");
    Require(again.state == Handshaker::State::kFailed && again.error == end.error());
    Require(again.out.empty() && again.consumed == 0);
  } else if (!end.done()) {
    Require(end.rest().empty());
    Require(!end.handshaker().OnPeerEnd().ok());
  }
}

inline int RunHandshakeMutation(std::string_view input, bool of_server) {
  static const CredentialsPtr psk = FuzzPsk();
  if (input.empty()) return 0;
  const auto first = static_cast<uint8_t>(input[0]);
  input.remove_prefix(1);
  const bool raw = first == 0xff && !input.empty();
  const bool uses_psk = ((raw ? input[0] : first) & 1) != 0;
  HandshakePump pump(uses_psk ? ClientOf(psk, {}) : ClientOf(ClientCredentials()),
                     ServerOf(uses_psk ? psk : ServerCredentials()));
  PumpEnd& end = of_server ? pump.server : pump.client;
  if (raw) {
    end.Give({});
    end.Give(input.substr(1));
    Require(!end.done());
    CheckEnd(end);
    return 0;
  }
  HandshakeMutation mutation(input);
  pump.piece = first >> 1;
  (of_server ? pump.to_server : pump.to_client) = [&](std::string& bytes) {
    mutation.Apply(bytes);
  };
  pump.Run();
  if (pump.client.done() && pump.server.done()) {
    const HandshakeResult client = pump.client.TakeResult();
    const HandshakeResult server = pump.server.TakeResult();
    Require(client.send_key.size() == 44 && client.receive_key.size() == 44);
    Require(client.send_key.view() == server.receive_key.view());
    Require(client.receive_key.view() == server.send_key.view());
    Require(client.send_key.view() != client.receive_key.view());
    return 0;
  }
  CheckEnd(pump.client);
  CheckEnd(pump.server);
  return 0;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_FUZZ_HANDSHAKE_MUTATION_H_
