// Sends one file to another machine, checked end to end with SHA-256:
//   bulk_transfer receive OUT --listen=ADDR
//   bulk_transfer send FILE --connect=ADDR
//
// Written with coroutines. The file is read and written by plain blocking calls on the loop's
// thread: right for a program that does one transfer, wrong for a server.
#include <fcntl.h>
#include <openssl/evp.h>
#include <penstock/coro.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/json.h"
#include "common/part_file.h"
#include "common/program.h"
#include "common/progress.h"
#include "common/sealing.h"
#include "common/stopwatch.h"
#include "common/transfer_format.h"
#include "common/transport.h"

ABSL_FLAG(std::string, connect, "", "send: address of the receiver");
ABSL_FLAG(std::string, listen, "", "receive: address to wait at; port 0 takes a free one");
ABSL_FLAG(std::string, engine, "auto", "auto, epoll or uring");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(30),
          "longest time without progress before the peer is taken for dead");
ABSL_FLAG(int64_t, max_bytes, int64_t{1} << 40, "receive: largest file that is accepted, in bytes");

namespace {

using examples::Ack;
using examples::Sha256;
using examples::Verdict;
using penstock::Buffer;
using penstock::BufferChain;
using penstock::Loop;
using penstock::SocketAddress;
using penstock::Stream;
using penstock::StreamPtr;
namespace coro = penstock::coro;

constexpr size_t kChunk = 256 * 1024;
// The receiver's last act is to force the file to its disk, which may take long after the last
// byte.
constexpr int kAckPatience = 10;

struct Transfer {
  SocketAddress address;
  std::string path;
  absl::Duration timeout;
  uint64_t bytes_max;
  examples::Sealing sealing;
  examples::Transport transport;
};

struct Outcome {
  uint64_t bytes = 0;
  absl::Duration elapsed;
  Sha256 digest{};
  examples::Transport::Carrier carrier;
};

class Hasher {
 public:
  Hasher() : context_(EVP_MD_CTX_new()) { EVP_DigestInit_ex(context_, EVP_sha256(), nullptr); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  ~Hasher() { EVP_MD_CTX_free(context_); }

  void Update(std::string_view bytes) { EVP_DigestUpdate(context_, bytes.data(), bytes.size()); }
  Sha256 Finish() {
    Sha256 digest;
    EVP_DigestFinal_ex(context_, digest.data(), nullptr);
    return digest;
  }

 private:
  EVP_MD_CTX* context_;
};

// A file that is read from its beginning.
class SourceFile {
 public:
  static absl::StatusOr<SourceFile> Open(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("open ", path));
    SourceFile file(path, fd);
    struct stat is;
    if (fstat(fd, &is) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("fstat ", path));
    if (!S_ISREG(is.st_mode)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is not a regular file, which alone has a length to announce"));
    }
    file.size_ = static_cast<uint64_t>(is.st_size);
    return file;
  }
  SourceFile(SourceFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}
  SourceFile& operator=(SourceFile&&) = delete;
  ~SourceFile() {
    if (fd_ >= 0) close(fd_);
  }

  uint64_t size() const { return size_; }  // when it was opened

  // Fills `buffer`, whose window is empty, with the next `size` bytes.
  absl::Status Read(Buffer& buffer, size_t size) {
    buffer.Extend(size);
    for (size_t done = 0; done < size;) {
      const ssize_t got = read(fd_, buffer.mutable_data() + done, size - done);
      if (got == 0) {
        return absl::AbortedError(absl::StrCat(path_, " became shorter while it was sent"));
      }
      if (got < 0 && errno != EINTR) {
        return absl::ErrnoToStatus(errno, absl::StrCat("read ", path_));
      }
      if (got > 0) done += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }

 private:
  SourceFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
  uint64_t size_ = 0;
};

// Reads a stream in pieces of the caller's choosing.
class Reader {
 public:
  Reader(Stream& stream, coro::CancelToken token) : stream_(&stream), token_(std::move(token)) {}

  // The next bytes, at most `most`.
  coro::Task<absl::StatusOr<Buffer>> Next(uint64_t most) {
    if (rest_.empty()) {
      absl::StatusOr<Buffer> data = co_await coro::Read(*stream_, token_);
      if (!data.ok()) co_return data.status();
      rest_ = *std::move(data);
    }
    if (rest_.size() <= most) co_return std::move(rest_);
    co_return rest_.SplitFront(most);
  }

  coro::Task<absl::Status> Fill(char* out, size_t size) {
    while (size > 0) {
      absl::StatusOr<Buffer> data = co_await Next(size);
      if (!data.ok()) co_return data.status();
      std::memcpy(out, data->data(), data->size());
      out += data->size();
      size -= data->size();
    }
    co_return absl::OkStatus();
  }

 private:
  Stream* stream_;
  coro::CancelToken token_;
  Buffer rest_;
};

absl::Status Meaning(const Ack& ack, const Sha256& sent) {
  switch (ack.verdict) {
    case Verdict::kStored:
      if (ack.digest == sent) return absl::OkStatus();
      [[fallthrough]];
    case Verdict::kDigestDiffers:
      return absl::DataLossError(absl::StrCat("the checksums differ: ", examples::Hex(sent),
                                              " was sent, ", examples::Hex(ack.digest),
                                              " arrived"));
    case Verdict::kNotStored:
      return absl::ResourceExhaustedError("the receiver could not store the file");
    case Verdict::kRefused:
      return absl::FailedPreconditionError("the receiver refused the transfer");
  }
  return absl::InternalError("no such verdict");
}

// Sends the header, the content and its digest. The loop reads no further ahead of the network than
// the stream's high watermark.
coro::Task<absl::Status> SendContent(Loop& loop, Stream& stream, SourceFile& file,
                                     Outcome& outcome) {
  const auto header = examples::EncodeHeader(file.size());
  absl::StatusOr<Buffer> piece = loop.pool().Copy({header.data(), header.size()});
  if (!piece.ok()) co_return piece.status();
  stream.Write(*std::move(piece));

  Hasher hasher;
  examples::Progress progress(file.size());
  while (outcome.bytes < file.size()) {
    const size_t size = std::min<uint64_t>(kChunk, file.size() - outcome.bytes);
    piece = loop.pool().Allocate(size);
    if (!piece.ok()) co_return piece.status();
    const absl::Status read = file.Read(*piece, size);
    if (!read.ok()) co_return read;
    hasher.Update(piece->view());
    stream.Write(*std::move(piece));
    outcome.bytes += size;
    if (!stream.writable()) {
      const absl::Status room = co_await coro::NotifyWritable(stream);
      if (!room.ok()) co_return room;
    }
    progress.Update(outcome.bytes);
  }
  outcome.digest = hasher.Finish();
  piece = loop.pool().Copy(
      {reinterpret_cast<const char*>(outcome.digest.data()), outcome.digest.size()});
  if (!piece.ok()) co_return piece.status();
  co_return co_await coro::Write(stream, *std::move(piece));
}

coro::Task<absl::Status> Send(Loop& loop, const Transfer& transfer, Outcome& outcome) {
  absl::StatusOr<SourceFile> file = SourceFile::Open(transfer.path);
  if (!file.ok()) co_return file.status();

  penstock::ConnectOptions options;
  options.deadline = transfer.timeout;
  options.stream.write_deadline = transfer.timeout;
  options.stream.send_queue_low = kChunk;
  options.stream.send_queue_high = 4 * kChunk;
  absl::StatusOr<StreamPtr> stream = co_await coro::Connect(loop, transfer.address, options);
  if (!stream.ok()) co_return stream.status();
  stream = co_await examples::Sealing::Await(transfer.sealing, *std::move(stream));
  if (!stream.ok()) co_return stream.status();
  stream = transfer.transport.Apply(*std::move(stream), false, options.stream);

  const examples::Stopwatch watch;
  const absl::Status sent = co_await SendContent(loop, **stream, *file, outcome);
  // Also when the receiver has closed: it may have said why before.
  if (!sent.ok() && !penstock::IsReset(sent)) co_return sent;
  (*stream)->SetReadDeadline(sent.ok() ? kAckPatience * transfer.timeout : absl::Seconds(1));
  outcome.carrier = transfer.transport.carrier();  // before the peer has answered and gone
  Reader reader(**stream, coro::CancelToken());
  std::array<char, examples::kAckSize> bytes;
  const absl::Status answered = co_await reader.Fill(bytes.data(), bytes.size());
  outcome.elapsed = watch.elapsed();
  if (!answered.ok()) co_return sent.ok() ? answered : sent;
  const absl::StatusOr<Ack> ack = examples::DecodeAck(bytes);
  if (!ack.ok()) co_return ack.status();
  const absl::Status meaning = Meaning(*ack, outcome.digest);
  co_return meaning.ok() ? sent : meaning;
}

// A peer that has said a valid header, and what it said.
struct Sender {
  StreamPtr stream;
  Reader reader;
  uint64_t length = 0;
};

coro::Task<absl::Status> Answer(Loop& loop, Stream& stream, const Ack& ack) {
  const auto bytes = examples::EncodeAck(ack);
  absl::StatusOr<Buffer> answer = loop.pool().Copy({bytes.data(), bytes.size()});
  if (!answer.ok()) co_return answer.status();
  co_return co_await coro::Write(stream, *std::move(answer));
}

// The sender at the other end of `accepted`; why there is none, after telling it so.
coro::Task<absl::StatusOr<Sender>> Greet(Loop& loop, const Transfer& transfer, StreamPtr accepted,
                                         const penstock::StreamOptions& options,
                                         coro::CancelToken token) {
  absl::StatusOr<StreamPtr> stream =
      co_await examples::Sealing::Await(transfer.sealing, std::move(accepted));
  if (!stream.ok()) co_return stream.status();
  stream = transfer.transport.Apply(*std::move(stream), true, options);
  Reader reader(**stream, std::move(token));
  Sender sender{*std::move(stream), std::move(reader)};

  std::array<char, examples::kHeaderSize> header;
  const absl::Status got = co_await sender.reader.Fill(header.data(), header.size());
  const absl::StatusOr<uint64_t> length =
      got.ok() ? examples::DecodeHeader(header) : absl::StatusOr<uint64_t>(got);
  if (!length.ok()) {
    const Ack refusal{Verdict::kRefused, Sha256{}};
    (void)co_await Answer(loop, *sender.stream, refusal);  // it may be gone
    co_return length.status();
  }
  sender.length = *length;
  co_return sender;
}

// Receives content and digest into `file`, and puts it in place. `verdict` is what the sender is to
// be told.
coro::Task<absl::Status> ReceiveContent(Sender& sender, const Transfer& transfer,
                                        examples::PartFile& file, Outcome& outcome,
                                        Verdict& verdict) {
  verdict = Verdict::kRefused;
  if (sender.length > transfer.bytes_max) {
    co_return absl::ResourceExhaustedError(absl::StrCat("the sender announced ", sender.length,
                                                        " bytes, --max-bytes accepts ",
                                                        transfer.bytes_max));
  }

  verdict = Verdict::kNotStored;
  Hasher hasher;
  {
    examples::Progress progress(sender.length);
    while (outcome.bytes < sender.length) {
      absl::StatusOr<Buffer> data = co_await sender.reader.Next(sender.length - outcome.bytes);
      if (!data.ok()) co_return data.status();
      hasher.Update(data->view());
      const absl::Status written = file.Write(data->view());
      if (!written.ok()) co_return written;
      outcome.bytes += data->size();
      progress.Update(outcome.bytes);
    }
  }
  outcome.digest = hasher.Finish();
  Sha256 expected;
  const absl::Status last =
      co_await sender.reader.Fill(reinterpret_cast<char*>(expected.data()), expected.size());
  if (!last.ok()) co_return last;
  if (expected != outcome.digest) {
    verdict = Verdict::kDigestDiffers;
    co_return absl::DataLossError(absl::StrCat("the checksums differ: ", examples::Hex(expected),
                                               " was announced, ", examples::Hex(outcome.digest),
                                               " arrived"));
  }
  const absl::Status stored = file.Commit();
  if (stored.ok()) verdict = Verdict::kStored;
  co_return stored;
}

// The first peer that is a sender. A stranger (who fails the handshake, speaks something else or
// leaves) costs its own connection and no more, unless it has used up the one key.
coro::Task<absl::StatusOr<Sender>> AwaitSender(Loop& loop, const Transfer& transfer,
                                               coro::CancelToken token) {
  penstock::ListenOptions options;
  options.stream.read_deadline = transfer.timeout;
  options.stream.write_deadline = transfer.timeout;
  options.stream.receive_max = kChunk;
  auto queue = coro::AcceptQueue::Listen(loop, transfer.address, options);
  if (!queue.ok()) co_return queue.status();
  std::printf("listening on %s\n", (*queue)->listener().address().ToString().c_str());
  std::fflush(stdout);
  for (;;) {
    absl::StatusOr<StreamPtr> stream = co_await (*queue)->Accept(token);
    if (!stream.ok()) co_return stream.status();
    absl::StatusOr<Sender> sender =
        co_await Greet(loop, transfer, *std::move(stream), options.stream, token);
    if (sender.ok() || transfer.sealing.serves_one()) co_return sender;
    examples::Complain(absl::StrCat("sent away: ", sender.status().message()));
  }
}

coro::Task<absl::Status> Receive(Loop& loop, const Transfer& transfer, coro::CancelToken token,
                                 Outcome& outcome) {
  // Before anybody is let in, so that a bad path shows at once.
  absl::StatusOr<examples::PartFile> file = examples::PartFile::Create(transfer.path);
  if (!file.ok()) co_return file.status();
  absl::StatusOr<Sender> sender = co_await AwaitSender(loop, transfer, token);
  if (!sender.ok()) co_return sender.status();

  const examples::Stopwatch watch;
  Verdict verdict = Verdict::kRefused;
  const absl::Status received = co_await ReceiveContent(*sender, transfer, *file, outcome, verdict);
  outcome.elapsed = watch.elapsed();
  outcome.carrier = transfer.transport.carrier();
  const Ack ack{verdict, outcome.digest};
  const absl::Status answered = co_await Answer(loop, *sender->stream, ack);
  co_return received.ok() ? answered : received;
}

// Keeps the task's result and ends the loop.
coro::Task<void> Conclude(Loop& loop, coro::Task<absl::Status> task, absl::Status& result) {
  result = co_await std::move(task);
  loop.Stop();
}

// Has SIGINT and SIGTERM cancel the transfer instead of killing the program, so that the unfinished
// file is removed. The library handles no signal; this thread does nothing but wait for one.
void CancelOnSignal(coro::CancelSource& source, penstock::LoopHandle loop) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set, &source, loop = std::move(loop)] {
    int signal = 0;
    while (sigwait(&set, &signal) == 0) loop.Post([&source] { source.Cancel(); });
  }).detach();
}

int Run(bool sends, const Transfer& transfer) {
  static coro::CancelSource source;  // the thread of CancelOnSignal never ends
  penstock::LoopOptions options;
  options.engine = examples::EngineOrFail("engine", absl::GetFlag(FLAGS_engine));
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (!loop.ok()) examples::Fail(std::string(loop.status().message()));

  transfer.transport.Prepare(**loop);
  if (!sends) CancelOnSignal(source, (*loop)->handle());
  Outcome outcome;
  absl::Status result;
  coro::Task<void> task = Conclude(
      **loop,
      sends ? Send(**loop, transfer, outcome) : Receive(**loop, transfer, source.token(), outcome),
      result);
  task.Start();
  if (!task.done()) (*loop)->Run();
  if (!result.ok()) {
    examples::Complain(absl::StrCat(sends ? "not sent: " : "not received: ", result.message()));
    return 1;
  }
  const double seconds = absl::ToDoubleSeconds(outcome.elapsed);
  examples::JsonLine()
      .Add("transport", outcome.carrier.name)
      .Add("fallback", outcome.carrier.fallback)
      .Add("bytes", outcome.bytes)
      .Add("seconds", seconds)
      .Add("bytes_per_s", seconds > 0 ? static_cast<double>(outcome.bytes) / seconds : 0.0)
      .Add("sha256", examples::Hex(outcome.digest))
      .Print();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const examples::FileTransfer asked = examples::ParseFileTransfer(
      argc, argv,
      "send FILE --connect=ADDR [flags]\n"
      "       bulk_transfer receive OUT --listen=ADDR [flags]\n\n"
      "Transfers one file, checked end to end with SHA-256. OUT appears when it is complete.\n"
      "The receiver takes one file and ends; whoever is no sender is sent away.",
      FLAGS_connect, FLAGS_listen);
  const Transfer transfer{asked.address,
                          asked.path,
                          absl::GetFlag(FLAGS_timeout),
                          static_cast<uint64_t>(absl::GetFlag(FLAGS_max_bytes)),
                          examples::Sealing::FromFlags(!asked.sends),
                          examples::Transport::FromFlags()};
  examples::RangeOrFail("max-bytes", absl::GetFlag(FLAGS_max_bytes), 0, INT64_MAX);
  if (transfer.timeout < absl::Milliseconds(1)) {
    examples::Fail("--timeout: durations of 1ms and more are accepted");
  }
  return Run(asked.sends, transfer);
}
