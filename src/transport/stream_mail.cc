#include "transport/stream_mail.h"

#include <utility>

#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Tasks of one stream before others get their turn (I9).
constexpr size_t kMailInARow = 64;

}  // namespace

StreamMail::StreamMail(Stream& stream)
    : stream_(&stream),
      turn_([](Deferred* hook) { static_cast<Hook*>(hook)->mail.Run(); }, *this),
      loop_end_([](Deferred* hook) { static_cast<Hook*>(hook)->mail.OnLost(); }, *this),
      mailbox_([this] { SendToken(); }) {}

void StreamMail::Open() {
  if (Connection* const connection = stream_->connection()) connection->AddLayer(*this);
  LoopCore& loop = stream_->loop().core();
  loop.AtEnd(loop_end_);
  SetLoop(&loop);
  mailbox_.PrepareToSleep();  // so that the first push sends a token
}

void StreamMail::Close() {
  if (Connection* const connection = stream_->connection()) connection->RemoveLayer(*this);
  stream_ = nullptr;
  turn_.Cancel();
  loop_end_.Cancel();
  SetLoop(nullptr);
  mailbox_.Close();
}

bool StreamMail::Post(StreamHandle::Task task) {
  return mailbox_.Push([this, task = std::move(task)]() mutable { std::move(task)(*stream_); });
}

void StreamMail::SetLoop(LoopCore* core) {
  const std::lock_guard<std::mutex> lock(mutex_);
  at_ = core;
  if (core != nullptr) loop_ = core->handle();
}

void StreamMail::SendToken() {
  LoopHandle loop;
  const LoopCore* at;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loop = loop_;
    at = at_;
  }
  if (at != nullptr) loop.Post([self = shared_from_this(), at] { self->OnToken(at); });
}

void StreamMail::OnToken(const LoopCore* at) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (at_ != at) return;
  }
  // Only this thread changes at_ from here on.
  Run();
}

void StreamMail::Run() {
  const std::shared_ptr<StreamMail> self = shared_from_this();
  mailbox_.FinishSleep();
  mailbox_.Drain(kMailInARow);
  if (stream_ != nullptr && !mailbox_.PrepareToSleep()) stream_->loop().core().Defer(turn_);
}

void StreamMail::OnLeave() {
  turn_.Cancel();
  loop_end_.Cancel();
  SetLoop(nullptr);
}

absl::Status StreamMail::OnJoin(LoopCore& loop) {
  loop.AtEnd(loop_end_);
  SetLoop(&loop);
  loop.Defer(turn_);
  return absl::OkStatus();
}

}  // namespace internal

bool StreamHandle::Post(Task task) const {
  return mail_ != nullptr && mail_->Post(std::move(task));
}

StreamMailbox::StreamMailbox(Stream& stream)
    : mail_(std::make_shared<internal::StreamMail>(stream)) {
  mail_->Open();
}

StreamMailbox::~StreamMailbox() { mail_->Close(); }

PENSTOCK_END_NAMESPACE
