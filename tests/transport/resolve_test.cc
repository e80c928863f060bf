#include "transport/resolve.h"

#include <netdb.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"

namespace penstock {
namespace {

using Addresses = absl::StatusOr<std::vector<SocketAddress>>;
using Job = absl::AnyInvocable<void() &&>;

class Resolving : public ::testing::Test {
 protected:
  Resolving() {
    LoopOptions options;
    options.engine = EngineKind::kEpoll;
    loop_ = Loop::Create(std::move(options)).value();
  }

  // Runs the loop until the answer is there.
  Addresses Answer(std::string host, uint16_t port, Executor& executor) {
    std::optional<Addresses> answer;
    Resolve(*loop_, std::move(host), port, executor, [&](Addresses result) {
      EXPECT_TRUE(loop_->InLoopThread());
      answer = std::move(result);
      loop_->Stop();
    });
    EXPECT_FALSE(answer.has_value()) << "the callback ran inside the call";
    loop_->Run();
    return *std::move(answer);
  }

  static std::vector<std::string> Texts(const Addresses& addresses) {
    std::vector<std::string> texts;
    EXPECT_TRUE(addresses.ok()) << addresses.status();
    if (!addresses.ok()) return texts;
    for (const SocketAddress& address : *addresses) texts.push_back(address.ToString());
    return texts;
  }

  std::unique_ptr<Loop> loop_;
  Executor unused_ = [](Job) { FAIL() << "this needs no lookup"; };
};

TEST_F(Resolving, NumericHostsNeedNoExecutor) {
  EXPECT_EQ(Texts(Answer("192.0.2.7", 80, unused_)), std::vector<std::string>({"192.0.2.7:80"}));
  EXPECT_EQ(Texts(Answer("2001:db8::7", 81, unused_)),
            std::vector<std::string>({"[2001:db8::7]:81"}));
}

TEST_F(Resolving, NamesAreLookedUpOnTheExecutor) {
  std::thread worker;
  std::thread::id looked_up_on;
  Executor executor = [&](Job job) {
    worker = std::thread([&looked_up_on, job = std::move(job)]() mutable {
      looked_up_on = std::this_thread::get_id();
      std::move(job)();
    });
  };
  const std::vector<std::string> texts = Texts(Answer("localhost", 8080, executor));
  worker.join();
  EXPECT_NE(looked_up_on, std::this_thread::get_id());
  ASSERT_FALSE(texts.empty());
  for (const std::string& text : texts) {
    EXPECT_TRUE(text == "[::1]:8080" || text.starts_with("127.")) << text;
    EXPECT_TRUE(text.ends_with(":8080")) << text;
  }
}

TEST_F(Resolving, ANameThatCannotBeIsNotFound) {
  Executor executor = [](Job job) { std::move(job)(); };
  const absl::Status status = Answer("no such host", 80, executor).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_TRUE(absl::StartsWith(status.message(), "resolve no such host: ")) << status;
}

TEST_F(Resolving, BadNamesAreRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Answer("", 80, unused_).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(Answer(std::string("127.0.0.1\0x", 11), 80, unused_).status()));
  Executor none;
  EXPECT_TRUE(absl::IsFailedPrecondition(Answer("localhost", 80, none).status()));
  EXPECT_TRUE(Answer("127.0.0.1", 80, none).ok());
}

TEST_F(Resolving, TheCallbackIsDestroyedUnrunWhenTheLoopIsGoneFirst) {
  const auto held = std::make_shared<int>();
  const auto done = [held](Addresses) { FAIL() << "the loop is gone"; };
  Job job;
  Executor later = [&job](Job todo) { job = std::move(todo); };
  Resolve(*loop_, "localhost", 80, later, done);
  loop_.reset();
  EXPECT_GT(held.use_count(), 2);
  std::thread(std::move(job)).join();
  job = nullptr;
  EXPECT_EQ(held.use_count(), 2);  // `held` and `done`
}

TEST_F(Resolving, AnAnswerOnItsWayGoesWithTheLoop) {
  const auto held = std::make_shared<int>();
  const auto done = [held](Addresses) { FAIL() << "no turn has run"; };
  Executor at_once = [](Job job) { std::move(job)(); };
  Resolve(*loop_, "localhost", 80, at_once, done);
  Resolve(*loop_, "127.0.0.1", 80, at_once, done);
  EXPECT_EQ(held.use_count(), 4);
  loop_.reset();
  EXPECT_EQ(held.use_count(), 2);
}

TEST_F(Resolving, AnExecutorMayDropTheJob) {
  const auto held = std::make_shared<int>();
  Executor drops = [](Job) {};
  Resolve(*loop_, "localhost", 80, drops, [held](Addresses) { FAIL() << "nothing looked it up"; });
  EXPECT_EQ(held.use_count(), 1);
}

TEST(LookupStatus, TellsWhetherToTryAgain) {
  using internal::LookupStatus;
  const std::pair<int, absl::StatusCode> cases[] = {
      {EAI_NONAME, absl::StatusCode::kNotFound},
      {EAI_NODATA, absl::StatusCode::kNotFound},
      {EAI_ADDRFAMILY, absl::StatusCode::kNotFound},
      {EAI_AGAIN, absl::StatusCode::kUnavailable},
      {EAI_FAIL, absl::StatusCode::kUnavailable},
      {EAI_MEMORY, absl::StatusCode::kResourceExhausted},
      {EAI_BADFLAGS, absl::StatusCode::kInternal},
  };
  for (const auto& [code, expected] : cases) {
    const absl::Status status = LookupStatus(code, 0, "host");
    EXPECT_EQ(status.code(), expected) << status;
    EXPECT_TRUE(absl::StartsWith(status.message(), "resolve host: ")) << status;
  }
  EXPECT_EQ(LookupStatus(EAI_SYSTEM, EMFILE, "host"),
            absl::ResourceExhaustedError("resolve host: too many open files (EMFILE)"));
}

}  // namespace
}  // namespace penstock
