#include "testing/harness.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "testing/pattern.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

Harness::Harness() : environment_(GetParam().make()) {}

Harness::~Harness() = default;

void Harness::SetUp() {
  if (const std::string why = environment_->missing(); !why.empty()) GTEST_SKIP() << why;
  is_unix_ = environment_->NewAddress().family() == AF_UNIX;
  RemakeLoop({});
}

void Harness::RemakeLoop(LoopOptions options) {
  if (loop_ != nullptr) StopDriving(loop_.get());
  absl::StatusOr<std::unique_ptr<Loop>> loop = environment_->NewLoop(std::move(options));
  ASSERT_TRUE(loop.ok()) << loop.status();
  loop_ = *std::move(loop);
  AlsoDrive(loop_.get());
}

std::unique_ptr<Loop> Harness::TakeLoop() {
  StopDriving(loop_.get());
  return std::move(loop_);
}

void Harness::TearDown() {
  if (loop_ == nullptr) return;
  EXPECT_TRUE(Drive([this] {
    accepted_.clear();  // again, for one that was being accepted or sealed arrives only now
    const LoopSnapshot now = loop_->Snapshot();
    return now.open + now.connecting + now.closing == 0 && now.pool.live == 0;
  })) << "left: "
      << loop_->Snapshot().open << " open, " << loop_->Snapshot().connecting << " connecting, "
      << loop_->Snapshot().closing << " closing, " << loop_->Snapshot().pool.live
      << " bytes of the pool";
  EXPECT_EQ(loop_->Snapshot().pinned_bytes, 0u);
  EXPECT_EQ(loop_->Snapshot().sealed_pinned_bytes, 0u);
  EXPECT_EQ(loop_->Snapshot().framed_pinned_bytes, 0u);
  if (!faults_allowed_) {
    EXPECT_EQ(loop_->Snapshot().faults, 0u);
  }
  loop_.reset();
}

bool Harness::Drive(absl::FunctionRef<bool()> done) { return environment_->Drive(driven_, done); }

void Harness::Settle() { environment_->Settle(driven_); }

void Harness::Pass(absl::Duration duration) {
  Timer timer(loop());
  Fate passed;
  timer.Arm(duration, passed.OnEvent());
  ASSERT_TRUE(Drive([&] { return passed.ended(); }));
}

std::unique_ptr<Listener> Harness::Listen(ListenOptions options) {
  options.engine = environment_->listen_engine();
  absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Listen(
      loop(), environment_->NewAddress(), std::move(options), [this](StreamPtr stream) {
        environment_->Wrap(std::move(stream), true, [this](absl::StatusOr<StreamPtr> wrapped) {
          ASSERT_TRUE(wrapped.ok()) << wrapped.status();
          accepted_.push_back(*std::move(wrapped));
        });
      });
  if (!listener.ok()) {
    ADD_FAILURE() << listener.status();
    return nullptr;
  }
  return *std::move(listener);
}

ConnectOptions Harness::Connecting(StreamOptions stream) {
  ConnectOptions options;
  options.engine = environment_->connect_engine();
  options.stream = stream;
  return options;
}

absl::StatusOr<StreamPtr> Harness::ConnectTo(const SocketAddress& address, ConnectOptions options) {
  absl::StatusOr<StreamPtr> result = absl::UnknownError("the callback has not run");
  bool ended = false;
  const auto end = [&](absl::StatusOr<StreamPtr> stream) {
    result = std::move(stream);
    ended = true;
  };
  Connect(loop(), address, std::move(options), [&](absl::StatusOr<StreamPtr> stream) {
    if (!stream.ok()) return end(stream.status());
    environment_->Wrap(*std::move(stream), false, end);
  });
  EXPECT_TRUE(Drive([&] { return ended; })) << "connect to " << address.ToString() << " hangs";
  return result;
}

StreamPair Harness::Pair(StreamOptions client, StreamOptions server) {
  ListenOptions options;
  options.stream = server;
  StreamPair pair;
  std::unique_ptr<Listener> listener = Listen(options);
  if (listener == nullptr) return pair;
  absl::StatusOr<StreamPtr> stream = ConnectTo(listener->address(), Connecting(client));
  EXPECT_TRUE(stream.ok()) << stream.status();
  EXPECT_TRUE(Drive([this] { return !accepted_.empty(); })) << "nothing was accepted";
  if (!stream.ok() || accepted_.empty()) return pair;
  pair.client = *std::move(stream);
  pair.server = std::move(accepted_.front());
  accepted_.pop_front();
  return pair;
}

BufferChain Harness::Chain(std::string_view bytes) {
  constexpr size_t kPiece = 256 * 1024;
  BufferChain chain;
  for (size_t at = 0; at < bytes.size(); at += kPiece) {
    absl::StatusOr<Buffer> piece = loop().pool().Copy(bytes.substr(at, kPiece));
    EXPECT_TRUE(piece.ok()) << piece.status();
    if (piece.ok()) chain.Append(*std::move(piece));
  }
  return chain;
}

absl::StatusOr<std::string> Harness::Read(Stream& stream) {
  Fate read;
  stream.ReadReady(read.OnRead());
  if (!Drive([&] { return read.ended(); })) return absl::InternalError("the read hangs");
  if (!read.status().ok()) return read.status();
  return read.data();
}

absl::Status Harness::Write(Stream& stream, std::string_view bytes) {
  Fate write;
  stream.Write(Chain(bytes), write.OnDone());
  if (!Drive([&] { return write.ended(); })) return absl::InternalError("the write hangs");
  return write.status();
}

absl::Status Harness::Shutdown(Stream& stream) {
  Fate shutdown;
  stream.ShutdownWrite(shutdown.OnDone());
  if (!Drive([&] { return shutdown.ended(); })) return absl::InternalError("the shutdown hangs");
  return shutdown.status();
}

Harness::Received Harness::ReadUpTo(Stream& stream, size_t size) {
  Received received;
  while (received.data.size() < size) {
    absl::StatusOr<std::string> data = Read(stream);
    if (!data.ok()) {
      received.end = data.status();
      break;
    }
    EXPECT_FALSE(data->empty()) << "a read ended with no byte";
    received.data += *data;
  }
  return received;
}

void Harness::Exchange(Stream& from, Stream& to, std::string_view bytes) {
  Fate written;
  from.Write(Chain(bytes), written.OnDone());
  const Received received = ReadUpTo(to, bytes.size());
  EXPECT_TRUE(received.end.ok()) << received.end;
  EXPECT_EQ(received.data, bytes);
  EXPECT_TRUE(Drive([&] { return written.ended(); }));
  EXPECT_TRUE(written.status().ok()) << written.status();
}

void PatternReader::Next() {
  stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
    if (!data.ok()) {
      end_ = data.status();
      ended_ = true;
      return;
    }
    intact_ = intact_ && !FirstMismatch(data->view(), seed_, received_).has_value();
    received_ += data->size();
    *data = Buffer();
    Next();
  });
}

void PatternWriter::Next() {
  if (queued_ == total_) {
    stream_.ShutdownWrite([this](absl::Status status) { End(std::move(status)); });
    return;
  }
  const size_t size = static_cast<size_t>(std::min<uint64_t>(piece_, total_ - queued_));
  absl::StatusOr<Buffer> piece = stream_.loop().pool().Allocate(size);
  if (!piece.ok()) return End(piece.status());
  piece->Extend(size);
  FillPattern({piece->mutable_data(), size}, seed_, queued_);
  queued_ += size;
  stream_.Write(*std::move(piece), [this](absl::Status status) {
    if (!status.ok()) return End(std::move(status));
    Next();
  });
}

void PatternWriter::End(absl::Status status) {
  end_ = std::move(status);
  ended_ = true;
}

void EchoForever(StreamPtr stream) {
  Stream& in = *stream;
  in.ReadReady([stream = std::move(stream)](absl::StatusOr<Buffer> data) mutable {
    if (!data.ok()) return;
    Stream& out = *stream;
    out.Write(*std::move(data), [stream = std::move(stream)](absl::Status sent) mutable {
      if (sent.ok()) EchoForever(std::move(stream));
    });
  });
}

std::string EnvironmentName(const ::testing::TestParamInfo<EnvironmentCase>& info) {
  return info.param.name;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
