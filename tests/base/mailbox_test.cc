#include "base/mailbox.h"

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/fd.h"
#include "base/sys.h"
#include "testing/patient_poll.h"

namespace penstock::internal {
namespace {

constexpr size_t kAll = SIZE_MAX;

// An owner that sleeps on an eventfd, as a loop does.
class Owner {
 public:
  Owner()
      : event_(RealSys(), RealSys().EventFd()), mailbox_(std::make_shared<Mailbox>([this] {
          const uint64_t one = 1;
          EXPECT_EQ(RealSys().Write(event_.get(), &one, sizeof(one)), 8);
        })) {}
  ~Owner() { mailbox_->Close(); }

  const std::shared_ptr<Mailbox>& mailbox() { return mailbox_; }

  // Sleeps until a push wakes it, if there is nothing to do.
  void Sleep() {
    if (!mailbox_->PrepareToSleep()) return;
    EXPECT_TRUE(PatientPoll(event_.get(), POLLIN, 60'000)) << "a wake-up was lost";
    mailbox_->FinishSleep();
    uint64_t count;
    EXPECT_EQ(RealSys().Read(event_.get(), &count, sizeof(count)), 8);
  }

 private:
  UniqueFd event_;
  std::shared_ptr<Mailbox> mailbox_;
};

TEST(Mailbox, TakesNoMovesAfterTheirEnd) {
  Mailbox mailbox([] {});
  int ran = 0, destroyed = 0;
  struct Counted {
    explicit Counted(int& count) : count(&count) {}
    Counted(Counted&& other) noexcept : count(std::exchange(other.count, nullptr)) {}
    ~Counted() {
      if (count != nullptr) ++*count;
    }
    int* count;
  };
  EXPECT_TRUE(mailbox.PushMove([&] { ++ran; }));
  mailbox.EndMoves();
  EXPECT_TRUE(mailbox.has_work()) << "what came before is still to run";
  // What a refused task does as it goes may push, too.
  struct Pushes {
    explicit Pushes(Mailbox& to) : to(&to) {}
    Pushes(Pushes&& other) noexcept : to(std::exchange(other.to, nullptr)) {}
    ~Pushes() {
      if (to != nullptr) to->PushMove([] {});
    }
    Mailbox* to;
  };
  EXPECT_FALSE(mailbox.PushMove([&, counted = Counted(destroyed)] { ++ran; }));
  EXPECT_EQ(destroyed, 1);
  EXPECT_FALSE(mailbox.PushMove([pushes = Pushes(mailbox)] {}));
  EXPECT_TRUE(mailbox.Push([&] { ++ran; })) << "other tasks it takes still";
  EXPECT_EQ(mailbox.Drain(10), 2u);
  EXPECT_EQ(ran, 2);
}

TEST(Mailbox, RunsTasksInTheOrderOfTheirPushes) {
  Mailbox mailbox([] {});
  std::vector<int> ran;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(mailbox.Push([&ran, i] { ran.push_back(i); }));
  EXPECT_TRUE(mailbox.has_work());
  EXPECT_EQ(mailbox.Drain(kAll), 5u);
  EXPECT_EQ(ran, std::vector<int>({0, 1, 2, 3, 4}));
  EXPECT_FALSE(mailbox.has_work());
  EXPECT_EQ(mailbox.Drain(kAll), 0u);
}

TEST(Mailbox, TheBudgetBoundsADrainAndKeepsTheOrder) {
  Mailbox mailbox([] {});
  std::vector<int> ran;
  for (int i = 0; i < 5; ++i) mailbox.Push([&ran, i] { ran.push_back(i); });
  EXPECT_EQ(mailbox.Drain(2), 2u);
  mailbox.Push([&ran] { ran.push_back(5); });
  EXPECT_TRUE(mailbox.has_work());
  EXPECT_FALSE(mailbox.PrepareToSleep());
  EXPECT_EQ(mailbox.Drain(2), 2u);
  EXPECT_FALSE(mailbox.PrepareToSleep());
  EXPECT_EQ(mailbox.Drain(2), 2u);
  EXPECT_EQ(ran, std::vector<int>({0, 1, 2, 3, 4, 5}));
}

TEST(Mailbox, TasksPushedByTasksWaitForTheNextDrain) {
  Mailbox mailbox([] {});
  int ran = 0;
  mailbox.Push([&] {
    ++ran;
    mailbox.Push([&] { ++ran; });
  });
  EXPECT_EQ(mailbox.Drain(kAll), 1u);
  EXPECT_EQ(ran, 1);
  EXPECT_EQ(mailbox.Drain(kAll), 1u);
  EXPECT_EQ(ran, 2);
}

TEST(Mailbox, WakesOnlyASleeperAndOnlyOnce) {
  int woken = 0;
  Mailbox mailbox([&woken] { ++woken; });
  for (int i = 0; i < 1000; ++i) mailbox.Push([] {});
  EXPECT_EQ(woken, 0);
  EXPECT_EQ(mailbox.Drain(kAll), 1000u);

  ASSERT_TRUE(mailbox.PrepareToSleep());
  for (int i = 0; i < 1000; ++i) mailbox.Push([] {});
  EXPECT_EQ(woken, 1);
  EXPECT_EQ(mailbox.wakeups(), 1u);
  mailbox.FinishSleep();
  EXPECT_TRUE(mailbox.has_work());
  EXPECT_EQ(mailbox.Drain(kAll), 1000u);

  for (int i = 0; i < 1000; ++i) mailbox.Push([] {});
  EXPECT_EQ(woken, 1);
}

TEST(Mailbox, ASleepThatEndsByItselfNeedsNoWakeUp) {
  int woken = 0;
  Mailbox mailbox([&woken] { ++woken; });
  ASSERT_TRUE(mailbox.PrepareToSleep());
  EXPECT_FALSE(mailbox.has_work());
  mailbox.FinishSleep();
  mailbox.Push([] {});
  EXPECT_EQ(woken, 0);
  EXPECT_EQ(mailbox.Drain(kAll), 1u);
}

TEST(Mailbox, WorkKeepsItsOwnerAwake) {
  Mailbox mailbox([] {});
  mailbox.Push([] {});
  EXPECT_FALSE(mailbox.PrepareToSleep());
  mailbox.Drain(kAll);
  EXPECT_TRUE(mailbox.PrepareToSleep());
}

TEST(Mailbox, ClosingDestroysTasksUnrunAndRefusesLaterOnes) {
  Mailbox mailbox([] {});
  auto held = std::make_shared<int>(0);
  for (int i = 0; i < 3; ++i) mailbox.Push([held] { ++*held; });
  mailbox.Drain(1);
  mailbox.Close();
  EXPECT_EQ(*held, 1);
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_FALSE(mailbox.Push([held] { ++*held; }));
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(mailbox.Drain(kAll), 0u);
  EXPECT_FALSE(mailbox.PrepareToSleep());
  mailbox.Close();
}

// Pushes when it is destroyed.
struct PushesAtTheEnd {
  PushesAtTheEnd(Mailbox* m, bool* r) : mailbox(m), refused(r) {}

  Mailbox* mailbox;
  bool* refused;
  ~PushesAtTheEnd() {
    *refused = !mailbox->Push([] { FAIL(); });
  }
};

TEST(Mailbox, ATaskDestroyedByCloseMayPush) {
  Mailbox mailbox([] {});
  bool refused = false;
  mailbox.Push([end = std::make_unique<PushesAtTheEnd>(&mailbox, &refused)] { FAIL(); });
  mailbox.Close();
  EXPECT_TRUE(refused);
}

TEST(Mailbox, ProducersKeepTheirOrderAndNoWakeUpIsLost) {
  constexpr int kProducers = 4;
  constexpr int kTasks = 20'000;
  Owner owner;
  std::vector<int> next(kProducers, 0);
  std::vector<std::thread> producers;
  for (int producer = 0; producer < kProducers; ++producer) {
    producers.emplace_back([&, producer] {
      for (int i = 0; i < kTasks; ++i) {
        ASSERT_TRUE(owner.mailbox()->Push([&next, producer, i] {
          ASSERT_EQ(next[producer], i);
          ++next[producer];
        }));
        // Lets the owner fall asleep now and then.
        if (i % 64 == 0) std::this_thread::yield();
      }
    });
  }
  const std::vector<int> all(kProducers, kTasks);
  for (;;) {
    owner.mailbox()->Drain(100);
    if (next == all) break;
    owner.Sleep();
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_LE(owner.mailbox()->wakeups(), uint64_t{kProducers * kTasks});
}

TEST(Mailbox, ClosingRacesWithProducers) {
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> started{0};
    std::atomic<int> destroyed{0};
    int ran = 0;
    int pushed[2] = {0, 0};
    struct Counted {
      explicit Counted(std::atomic<int>* d) : destroyed(d) {}

      std::atomic<int>* destroyed;
      ~Counted() { destroyed->fetch_add(1); }
    };
    auto owner = std::make_unique<Owner>();
    std::vector<std::thread> producers;
    for (int& count : pushed) {
      producers.emplace_back([&, mailbox = owner->mailbox()] {
        started.fetch_add(1);
        do {
          ++count;
        } while (mailbox->Push([&ran, end = std::make_unique<Counted>(&destroyed)] { ++ran; }));
      });
    }
    while (started.load() < 2) std::this_thread::yield();
    for (int turn = 0; turn < round % 4; ++turn) {
      owner->mailbox()->Drain(10);
      owner->Sleep();
    }
    ASSERT_LE(ran, 30);
    if (round % 2 == 0) owner->mailbox()->PrepareToSleep();
    // The eventfd goes with the owner: a wake after Close would fail on it.
    owner.reset();
    for (std::thread& producer : producers) producer.join();
    ASSERT_EQ(destroyed.load(), pushed[0] + pushed[1]);
  }
}

}  // namespace
}  // namespace penstock::internal
