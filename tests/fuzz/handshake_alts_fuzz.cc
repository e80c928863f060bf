// Either end of the conversation with a handshaker service, whatever the service and the peer say.
//
// The input is a program: byte 0 chooses the role, then pieces of one byte (what to do), one byte
// (how long) and that many bytes.
#include <penstock/alts_service.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "testing/alts_fake_service.h"
#include "testing/handshake_pump.h"

namespace penstock::internal {
namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

// Whatever is asked, the answer is in the input.
class PuppetChannel final : public AltsChannel {
 public:
  explicit PuppetChannel(PuppetChannel*& self) { self = this; }
  void Start(ResponseCallback on_response) override { respond_ = std::move(on_response); }
  void SendRequest(std::string request) override {
    Require(!asked_);
    asked_ = true;
    Require(AltsFakeRequest::Decode(request).kind != AltsFakeRequest::Kind::kNone);
  }
  void Respond(absl::StatusOr<std::string> response) {
    asked_ = false;
    respond_(std::move(response));
  }

 private:
  ResponseCallback respond_;
  bool asked_ = false;
};

// A response that is well formed, its fields chosen by the input.
std::string ChosenResponse(std::string_view choices) {
  const auto choice = [&](size_t i) -> uint8_t { return i < choices.size() ? choices[i] : 0; };
  AltsFakeResponse response;
  response.consumed = choice(0);
  response.out_frames.assign(choice(1) % 16, 'f');
  response.has_result = choice(2) % 2 == 1;
  response.has_status = choice(3) % 8 != 7;
  response.status_code = choice(3) % 8 == 6 ? choice(4) : 0;
  response.result.key_data.resize(choice(5) % 64 == 63 ? 20 : 47);
  if (choice(6) % 8 == 7) response.result.peer_account.clear();
  response.result.max_frame_size = uint32_t{choice(7)} << 12;
  response.result.record_protocol =
      choice(8) % 2 == 0 ? "ALTSRP_GCM_AES128_REKEY" : "ALTSRP_GCM_AES128";
  return response.Encode();
}

void Run(std::string_view program) {
  if (program.empty()) return;
  PuppetChannel* puppet = nullptr;
  AltsServiceOptions options;
  options.open_channel = [&]() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return std::make_unique<PuppetChannel>(puppet);
  };
  options.record_protocols.push_back(RecordProtocol::kGcmAes128);
  HandshakeOptions handshake;
  handshake.server = (program[0] & 1) != 0;
  handshake.input_max = 512;
  PumpEnd end(*(*AltsServiceCredentials(options))->NewHandshaker(handshake));
  end.Give({});
  program.remove_prefix(1);
  while (program.size() >= 2) {
    const auto what = static_cast<uint8_t>(program[0]);
    const std::string_view bytes = program.substr(2, static_cast<uint8_t>(program[1]));
    program.remove_prefix(2 + bytes.size());
    if (what % 4 == 0) end.Give(bytes);
    if (what % 4 == 1) puppet->Respond(std::string(bytes));
    if (what % 4 == 2) puppet->Respond(ChosenResponse(bytes));
    if (what % 4 == 3) puppet->Respond(absl::UnavailableError("gone"));
  }
  if (end.done()) {
    const HandshakeResult result = end.TakeResult();
    Require(result.send_key.size() == RecordKeySize(result.protocol));
    Require(result.send_key.view() == result.receive_key.view());
    Require(result.send_frame_max >= kRecordFrameMin && result.send_frame_max <= kRecordFrameMax);
    Require(result.receive_frame_max <= kRecordFrameMax);
    Require(!result.peer.service_account.empty());
  } else if (end.failed()) {
    Require(end.handshaker().Step("more").error == end.error());
    Require(end.handshaker().TakeResult().send_key.empty());
  }
}

}  // namespace
}  // namespace penstock::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  penstock::internal::Run({reinterpret_cast<const char*>(data), size});
  return 0;
}
