#include "testing/handshake_pump.h"

#include <algorithm>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

PumpEnd::PumpEnd(std::unique_ptr<Handshaker> handshaker) : handshaker_(std::move(handshaker)) {
  handshaker_->SetWake([this] {
    if (waiting()) state_ = Handshaker::State::kMore;
    Give({});
  });
}

void PumpEnd::Give(std::string_view bytes) {
  rest_.append(bytes);
  if (over() || waiting()) return;
  Take(handshaker_->Step(rest_));
  while (state_ == Handshaker::State::kAuthorize) {
    ++authorized;
    Take(handshaker_->Authorize(authorize ? authorize(handshaker_->peer()) : absl::OkStatus()));
  }
}

void PumpEnd::Take(Handshaker::Progress progress) {
  state_ = progress.state;
  error_ = progress.error;
  sent_ += progress.out;
  rest_.erase(0, progress.consumed);
}

bool HandshakePump::Move(PumpEnd& from, PumpEnd& to,
                         const std::function<void(std::string&)>& change, std::string& log) {
  std::string bytes = from.TakeSent();
  if (bytes.empty()) return false;
  if (change) change(bytes);
  log += bytes;
  const size_t step = piece == 0 ? bytes.size() : piece;
  for (size_t at = 0; at < bytes.size(); at += step) {
    to.Give(std::string_view(bytes).substr(at, step));
  }
  return true;
}

void HandshakePump::Run() {
  client.Give({});
  server.Give({});
  bool moved = true;
  while (moved) {
    moved = Move(client, server, to_server, sent_to_server);
    moved = Move(server, client, to_client, sent_to_client) || moved;
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
