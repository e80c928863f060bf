// What a peer says inside TLS, which edits of the bytes on the wire cannot reach: either end of a
// handshake against a peer that completes TLS by the rules and then sends any messages.
//
// The input is a program: bit 0 of byte 0 makes our end the server, then pieces of one byte (how
// long; 0xff: a key update, with no bytes) and that many bytes, each a TLS record of its own.
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz/handshake_mutation.h"
#include "secure/tls_hello.h"
#include "testing/handshake_stranger.h"

namespace penstock::internal {
namespace {

void CarryAll(TlsStranger& stranger, PumpEnd& end) {
  stranger.Give({});
  end.Give({});
  for (;;) {
    const std::string to_end = stranger.TakeSent();
    if (!to_end.empty()) end.Give(to_end);
    const std::string to_stranger = end.TakeSent();
    if (!to_stranger.empty()) stranger.Give(to_stranger);
    if (to_end.empty() && to_stranger.empty()) return;
  }
}

void RunHelloProgram(std::string_view program) {
  static const auto* const certificate = new TestCertificate(
      CommonAuthority().Issue({.common_name = "stranger", .names = {"DNS:server.test"}}));
  if (program.empty()) return;
  const bool of_server = (program[0] & 1) != 0;
  program.remove_prefix(1);
  TlsStranger stranger(
      {.server = !of_server, .certificate = *certificate, .ca = CommonAuthority().pem()});
  PumpEnd end(of_server ? ServerOf(ServerCredentials()) : ClientOf(ClientCredentials()));
  CarryAll(stranger, end);
  Require(stranger.complete() && !end.over());
  bool agreed = false, updating = false;
  while (!program.empty() && !end.over()) {
    const auto size = static_cast<uint8_t>(program[0]);
    const std::string_view message = program.substr(1, size == 0xff ? 0 : size);
    program.remove_prefix(1 + message.size());
    if (size == 0xff && !updating) {
      stranger.RequestKeyUpdate();
      updating = true;  // it leaves with the next message
    }
    if (!message.empty()) {
      updating = false;
      stranger.Send(message);
      const absl::StatusOr<TlsHello> hello = DecodeTlsHello(message);
      agreed = hello.ok() &&
               hello->kind == (of_server ? TlsHello::Kind::kHello : TlsHello::Kind::kConfirm);
    }
    CarryAll(stranger, end);
    Require(!end.done() || agreed);
  }
  if (!end.done()) return CheckEnd(end);
  const HandshakeResult result = end.TakeResult();
  Require(result.server == of_server && result.mode == RecordMode::kNative);
  Require(result.send_key.size() == 44 && result.receive_key.size() == 44);
  Require(result.send_frame_max >= kRecordFrameMin && result.send_frame_max <= kRecordFrameMax);
}

}  // namespace
}  // namespace penstock::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  penstock::internal::RunHelloProgram({reinterpret_cast<const char*>(data), size});
  return 0;
}
