// What is posted to a stream when nobody will run it any more;
// tests/transport/migrate_threads_test.cc has the rest of StreamMailbox.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>

#include <memory>
#include <utility>

#include <gtest/gtest.h>

PENSTOCK_BEGIN_NAMESPACE
namespace {

struct MailSession {
  StreamPtr stream;
  std::unique_ptr<StreamMailbox> mailbox;
};

TEST(StreamMailTest, TasksMayOwnTheirMailboxWhenTheLoopGoes) {
  std::unique_ptr<Loop> loop = Loop::Create({}).value();
  StreamPtr accepted;
  std::unique_ptr<Listener> listener =
      Listener::Listen(*loop, *SocketAddress::Parse("127.0.0.1:0"), {}, [&](StreamPtr peer) {
        accepted = std::move(peer);
      }).value();
  auto session = std::make_shared<MailSession>();
  Connect(*loop, listener->address(), {}, [&](absl::StatusOr<StreamPtr> made) {
    ASSERT_TRUE(made.ok()) << made.status();
    session->stream = *std::move(made);
    loop->Stop();
  });
  loop->Run();
  session->mailbox = std::make_unique<StreamMailbox>(*session->stream);
  const StreamHandle handle = session->mailbox->handle();
  bool ran = false;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(handle.Post([session, &ran](Stream&) { ran = true; }));
  const std::weak_ptr<MailSession> watch = std::exchange(session, nullptr);
  EXPECT_FALSE(watch.expired()) << "the tasks own it";
  loop.reset();
  EXPECT_TRUE(watch.expired());
  EXPECT_FALSE(ran);
  EXPECT_FALSE(handle.Post([](Stream&) {}));
}

}  // namespace
PENSTOCK_END_NAMESPACE
