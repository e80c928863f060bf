// Puts one file into the memory of another program, which stores it:
//   rdma_put receive OUT --listen=ADDR
//   rdma_put send FILE --connect=ADDR
//
// The receiver exposes as much memory as the sender announces, the sender writes the file there,
// the last write together with the message that it was the last (WriteThenSend), and the receiver
// answers with the checksum of what it has. Over an RDMA device (common/rdma_device.h) the device
// makes the writes; when one side has none the stream carries them and the receiver's loop makes
// them, which the program then says on stderr.
#include <fcntl.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/part_file.h"
#include "common/program.h"
#include "common/rdma_device.h"
#include "common/sealing.h"
#include "common/stopwatch.h"

ABSL_FLAG(std::string, connect, "", "send: address of the receiver");
ABSL_FLAG(std::string, listen, "", "receive: address to wait at; port 0 takes a free one");
ABSL_FLAG(std::string, engine, "auto", "auto, epoll or uring");
ABSL_FLAG(int64_t, max_bytes, int64_t{1} << 30, "receive: largest file that is accepted, in bytes");

namespace {

using penstock::BufferChain;
using penstock::Loop;
using penstock::RdmaEndpoint;
using penstock::RdmaRemoteRegion;
using penstock::SocketAddress;
using penstock::StreamPtr;

constexpr size_t kPiece = 1 << 20;
constexpr uint64_t kInFlightMax = 16 * kPiece;

// FNV-1a: finds what was lost or swapped on the way, and nothing that somebody has made up.
uint64_t Checksum(std::string_view bytes) {
  uint64_t sum = 0xcbf29ce484222325;
  for (const char byte : bytes) sum = (sum ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  return sum;
}

// What the peer says, short and fit for a terminal.
std::string Quoted(const BufferChain& message) {
  std::string text(std::min<size_t>(message.size(), 64), '\0');
  message.CopyTo({text.data(), text.size()});
  return absl::CHexEscape(text);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("open ", path));
  std::string content;
  absl::Status status;
  while (status.ok()) {
    const size_t before = content.size();
    content.resize(before + kPiece);
    const ssize_t got = read(fd, content.data() + before, kPiece);
    content.resize(before + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got == 0) break;
    if (got < 0 && errno != EINTR) status = absl::ErrnoToStatus(errno, absl::StrCat("read ", path));
  }
  close(fd);
  if (!status.ok()) return status;
  return content;
}

// What both sides are: one endpoint, and an end with a status.
class Side {
 public:
  explicit Side(Loop& loop) : loop_(loop) {}
  const absl::Status& status() const { return status_; }
  absl::Duration elapsed() const { return elapsed_; }
  const penstock::RdmaStats& stats() const { return stats_; }

 protected:
  void End(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
    loop_.Stop();
  }
  void Send(std::string_view text) {
    auto message = loop_.pool().Copy(text);
    if (!message.ok()) return End(message.status());
    endpoint_->Send(*std::move(message));
  }
  // In order: whoever has nothing more to say closes, and the other one sees the end.
  void Close() {
    endpoint_->Close([this](absl::Status status) { End(std::move(status)); });
  }

  Loop& loop_;
  std::unique_ptr<RdmaEndpoint> endpoint_;
  absl::Duration elapsed_;
  penstock::RdmaStats stats_;  // when everything had been written

 private:
  absl::Status status_;
};

class Sender : public Side {
 public:
  Sender(Loop& loop, std::string content) : Side(loop), content_(std::move(content)) {}

  void Start(const SocketAddress& address, const examples::Sealing& sealing) {
    penstock::Connect(loop_, address, {}, [this, &sealing](absl::StatusOr<StreamPtr> stream) {
      if (!stream.ok()) return End(stream.status());
      sealing.Apply(*std::move(stream), [this](absl::StatusOr<StreamPtr> ready) {
        if (!ready.ok()) return End(ready.status());
        Announce(*std::move(ready));
      });
    });
  }
  size_t size() const { return content_.size(); }

 private:
  void Announce(StreamPtr stream) {
    endpoint_ = RdmaEndpoint::Connect(std::move(stream), examples::WithDevice(loop_));
    Send(absl::StrCat(content_.size()));
    endpoint_->AwaitRegion([this](absl::StatusOr<RdmaRemoteRegion> region) {
      if (!region.ok()) return End(region.status());
      region_ = *region;
      began_ = examples::Monotonic();
      WriteMore();
    });
    AwaitAnswer();
  }

  void WriteMore() {
    while (written_ < content_.size() && in_flight_ < kInFlightMax) {
      const size_t size = std::min(kPiece, content_.size() - written_);
      auto bytes = loop_.pool().Copy(std::string_view(content_).substr(written_, size));
      if (!bytes.ok()) return End(bytes.status());
      const uint64_t at = written_;
      written_ += size;
      in_flight_ += size;
      const auto done = [this, size](absl::Status status) {
        in_flight_ -= size;
        if (!status.ok()) return End(std::move(status));
        WriteMore();
      };
      if (written_ < content_.size()) {
        endpoint_->Write(region_, at, *std::move(bytes), done);
        continue;
      }
      auto message = loop_.pool().Copy("written");
      if (!message.ok()) return End(message.status());
      endpoint_->WriteThenSend(region_, at, *std::move(bytes), *std::move(message), done);
    }
  }

  void AwaitAnswer() {
    endpoint_->Receive([this](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) return End(message.status());
      elapsed_ = examples::Monotonic() - began_;
      stats_ = endpoint_->stats();
      const std::string answer = message->ToString();
      if (answer != absl::StrCat("stored ", Checksum(content_))) {
        return End(absl::DataLossError(absl::StrCat("the receiver answers: ", Quoted(*message))));
      }
      Close();
    });
  }

  const std::string content_;
  RdmaRemoteRegion region_;
  absl::Duration began_;
  size_t written_ = 0;
  uint64_t in_flight_ = 0;
};

class Receiver : public Side {
 public:
  Receiver(Loop& loop, examples::PartFile file, uint64_t bytes_max)
      : Side(loop), file_(std::move(file)), bytes_max_(bytes_max) {}

  absl::Status Listen(const SocketAddress& address, const examples::Sealing& sealing) {
    auto listener =
        penstock::Listener::Listen(loop_, address, {}, [this, &sealing](StreamPtr stream) {
          listener_ = nullptr;  // one sender is served
          sealing.Apply(std::move(stream), [this](absl::StatusOr<StreamPtr> ready) {
            if (!ready.ok()) return End(ready.status());
            endpoint_ = RdmaEndpoint::Accept(*std::move(ready), examples::WithDevice(loop_));
            AwaitSize();
          });
        });
    if (!listener.ok()) return listener.status();
    listener_ = *std::move(listener);
    std::printf("listening on %s\n", listener_->address().ToString().c_str());
    std::fflush(stdout);
    return absl::OkStatus();
  }
  size_t size() const { return size_; }

 private:
  void AwaitSize() {
    endpoint_->Receive([this](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) return End(message.status());
      began_ = examples::Monotonic();
      uint64_t size = 0;
      if (!absl::SimpleAtoi(Quoted(*message), &size) || size == 0 || size > bytes_max_) {
        return Refuse(absl::StrCat("1 to ", bytes_max_, " bytes are accepted (--max-bytes)"),
                      Quoted(*message));
      }
      // Zeros, which take up memory only where the sender writes.
      memory_.reset(static_cast<char*>(std::calloc(size, 1)));
      if (memory_ == nullptr) return Refuse("no memory for so many bytes", Quoted(*message));
      size_ = size;
      auto region = endpoint_->Expose({memory_.get(), size_}, penstock::RdmaAccess::kWrite);
      if (!region.ok()) return End(region.status());
      region_ = *std::move(region);
      AwaitLast();
    });
  }

  // The sender hears why before it sees the end.
  void Refuse(const std::string& why, const std::string& announced) {
    Send(absl::StrCat("refused: ", why));
    endpoint_->Close([this, end = absl::ResourceExhaustedError(
                                absl::StrCat("the sender announced ", announced, " bytes: ", why))](
                         const absl::Status&) { End(end); });
  }

  void AwaitLast() {
    endpoint_->Receive([this](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) return End(message.status());
      stats_ = endpoint_->stats();
      // The memory is read as soon as nobody can write it any more.
      region_.Revoke([this](absl::Status revoked) {
        if (!revoked.ok()) return End(std::move(revoked));
        absl::Status stored = file_.Write(content());
        if (stored.ok()) stored = file_.Commit();
        elapsed_ = examples::Monotonic() - began_;
        if (!stored.ok()) return End(std::move(stored));
        Send(absl::StrCat("stored ", Checksum(content())));
        AwaitEnd();
      });
    });
  }

  void AwaitEnd() {
    endpoint_->Receive([this](absl::StatusOr<BufferChain> message) {
      End(penstock::IsEof(message.status()) ? absl::OkStatus() : message.status());
    });
  }

  struct FreeDeleter {
    void operator()(char* memory) const { std::free(memory); }
  };

  std::string_view content() const { return {memory_.get(), size_}; }

  examples::PartFile file_;
  const uint64_t bytes_max_;
  std::unique_ptr<penstock::Listener> listener_;
  std::unique_ptr<char, FreeDeleter> memory_;
  size_t size_ = 0;
  penstock::RdmaRegion region_;
  absl::Duration began_;
};

int Conclude(const Side& side, size_t bytes, std::string_view what) {
  if (!side.status().ok()) {
    examples::Complain(absl::StrCat(std::string(what), ": ", side.status().message()));
    return 1;
  }
  const double seconds = absl::ToDoubleSeconds(side.elapsed());
  examples::TellCarrier(side.stats());
  examples::JsonLine()
      .Add("transport", side.stats().over_device ? "device" : "stream")
      .Add("fallback", side.stats().fallback)
      .Add("bytes", uint64_t{bytes})
      .Add("seconds", seconds)
      .Add("bytes_per_s", seconds > 0 ? static_cast<double>(bytes) / seconds : 0.0)
      .Print();
  return 0;
}

int Run(bool sends, const SocketAddress& address, const std::string& path) {
  const auto sealing = examples::Sealing::FromFlags(!sends);
  penstock::LoopOptions options;
  options.engine = examples::EngineOrFail("engine", absl::GetFlag(FLAGS_engine));
  auto loop = Loop::Create(std::move(options));
  if (!loop.ok()) examples::Fail(std::string(loop.status().message()));
  examples::OpenDeviceOfFlags(**loop);
  if (sends) {
    auto content = ReadFile(path);
    if (!content.ok()) examples::Fail(std::string(content.status().message()));
    if (content->empty()) examples::Fail(absl::StrCat(path, " is empty: there is nothing to put"));
    Sender sender(**loop, *std::move(content));
    sender.Start(address, sealing);
    (*loop)->Run();
    return Conclude(sender, sender.size(), "not sent");
  }
  auto file = examples::PartFile::Create(path);
  if (!file.ok()) examples::Fail(std::string(file.status().message()));
  Receiver receiver(**loop, *std::move(file),
                    static_cast<uint64_t>(absl::GetFlag(FLAGS_max_bytes)));
  if (const absl::Status listening = receiver.Listen(address, sealing); !listening.ok()) {
    examples::Complain(std::string(listening.message()));
    return 1;
  }
  (*loop)->Run();
  return Conclude(receiver, receiver.size(), "not received");
}

}  // namespace

int main(int argc, char** argv) {
  const examples::FileTransfer asked =
      examples::ParseFileTransfer(argc, argv,
                                  "send FILE --connect=ADDR [flags]\n"
                                  "       rdma_put receive OUT --listen=ADDR [flags]\n\n"
                                  "Writes one file into the memory of the receiver, which stores "
                                  "it and ends.",
                                  FLAGS_connect, FLAGS_listen);
  examples::RangeOrFail("max-bytes", absl::GetFlag(FLAGS_max_bytes), 1, int64_t{1} << 40);
  return Run(asked.sends, asked.address, asked.path);
}
