// Runs two Handshakers against each other in memory, as two drivers would.
//
// Owns both ends and the bytes between them. Steps go on until neither end can, in a fixed order,
// so that a test fails the same way every time. Single-threaded.
#ifndef PENSTOCK_TESTS_TESTING_HANDSHAKE_PUMP_H_
#define PENSTOCK_TESTS_TESTING_HANDSHAKE_PUMP_H_

#include <penstock/export.h>
#include <penstock/handshake.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// One end with its driver.
class PumpEnd {
 public:
  explicit PumpEnd(std::unique_ptr<Handshaker> handshaker);
  PumpEnd(const PumpEnd&) = delete;
  PumpEnd& operator=(const PumpEnd&) = delete;

  // Gives the bytes to the handshaker, or keeps them while it waits for a service; answers
  // kAuthorize by `authorize`.
  void Give(std::string_view bytes);
  // What the handshaker has sent since the last call.
  std::string TakeSent() { return std::exchange(sent_, {}); }

  bool done() const { return state_ == Handshaker::State::kDone; }
  bool failed() const { return state_ == Handshaker::State::kFailed; }
  bool waiting() const { return state_ == Handshaker::State::kWaiting; }
  bool over() const { return done() || failed(); }
  const absl::Status& error() const { return error_; }
  // What is left of the given bytes: after done(), the first records.
  const std::string& rest() const { return rest_; }
  Handshaker& handshaker() { return *handshaker_; }
  HandshakeResult TakeResult() { return handshaker_->TakeResult(); }

  std::function<absl::Status(const PeerIdentity&)> authorize;
  int authorized = 0;  // times that kAuthorize was answered

 private:
  void Take(Handshaker::Progress progress);

  std::unique_ptr<Handshaker> handshaker_;
  Handshaker::State state_ = Handshaker::State::kMore;
  std::string rest_;
  std::string sent_;
  absl::Status error_;
};

class HandshakePump {
 public:
  HandshakePump(std::unique_ptr<Handshaker> client, std::unique_ptr<Handshaker> server)
      : client(std::move(client)), server(std::move(server)) {}

  // Until both are over, or neither has anything more to say.
  void Run();

  PumpEnd client;
  PumpEnd server;
  // Bytes given at once; 0: all that there are.
  size_t piece = 0;
  // May change what travels; called once for each run of bytes.
  std::function<void(std::string&)> to_server;
  std::function<void(std::string&)> to_client;
  // All that has travelled.
  std::string sent_to_server;
  std::string sent_to_client;

 private:
  bool Move(PumpEnd& from, PumpEnd& to, const std::function<void(std::string&)>& change,
            std::string& log);
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_HANDSHAKE_PUMP_H_
