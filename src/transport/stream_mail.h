// StreamMail: the mailbox of a stream, which goes with it from loop to loop.
//
// Shared by a StreamMailbox and its handles. Posters push from any thread; the thread of the loop
// that has the stream runs what was pushed. The push that finds the mailbox asleep posts a token to
// that loop; a token that arrives where the stream is no more is void, for mail is always looked
// at after joining a loop. While the stream is between loops, mail waits.
#ifndef PENSTOCK_TRANSPORT_STREAM_MAIL_H_
#define PENSTOCK_TRANSPORT_STREAM_MAIL_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>

#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "base/mailbox.h"
#include "engine/deferred.h"
#include "engine/parcel.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class StreamMail final : public std::enable_shared_from_this<StreamMail>, private Layer {
 public:
  explicit StreamMail(Stream& stream);

  // Once shared, on the stream's thread; and the end.
  void Open();
  void Close();
  // Any thread.
  bool Post(StreamHandle::Task task);

 private:
  void OnLeave() override;
  absl::Status OnJoin(LoopCore& loop) override;
  void OnLost() override {
    const std::shared_ptr<StreamMail> self = shared_from_this();  // a task may own its mailbox
    mailbox_.Close();
  }

  void SetLoop(LoopCore* core);
  void SendToken();
  // A token has arrived at `at`, which may not be where the stream is.
  void OnToken(const LoopCore* at);
  void Run();

  Stream* stream_;  // null once closed
  // What the loop is to run: the mail, after joining, before the stream can leave again; and the
  // end, when the loop is going and nobody will run what is posted.
  struct Hook : Deferred {
    Hook(Run run, StreamMail& mail) : Deferred(run), mail(mail) {}
    StreamMail& mail;
  };
  Hook turn_;
  Hook loop_end_;
  Mailbox mailbox_;
  std::mutex mutex_;              // of what follows
  LoopHandle loop_;               // where tokens go
  const LoopCore* at_ = nullptr;  // the loop that has the stream; null between two
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TRANSPORT_STREAM_MAIL_H_
