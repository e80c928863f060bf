#include "rdma/work_queue.h"

#include <string_view>
#include <utility>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

class WorkQueueTest : public ::testing::Test {
 protected:
  WorkList New(std::string_view bytes, int64_t deadline_ns = Work::kNever) {
    WorkList one(1);
    one.front().data = *pool_.Copy(bytes);
    one.front().deadline_ns = deadline_ns;
    return one;
  }

  BufferPool pool_;
  WorkQueue queue_{3, 10};
};

TEST_F(WorkQueueTest, OperationsAndTheirBytesAreBounded) {
  EXPECT_TRUE(queue_.Admit(10).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(queue_.Admit(11)));
  queue_.Push(New("12345678"));
  EXPECT_TRUE(queue_.Admit(2).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(queue_.Admit(3)));
  queue_.Push(New("9"));
  queue_.Push(New("0"));
  EXPECT_TRUE(absl::IsResourceExhausted(queue_.Admit(0)));
  EXPECT_EQ(queue_.bytes(), 10u);
  queue_.TakeFront();
  EXPECT_EQ(queue_.bytes(), 2u);
  EXPECT_TRUE(queue_.Admit(8).ok());
}

TEST_F(WorkQueueTest, PostedBytesCountNoMore) {
  queue_.Push(New("12345678"));
  Work& work = queue_.front();
  work.data.TrimFront(5);
  queue_.OnPosted(5);
  EXPECT_EQ(queue_.bytes(), 3u);
  work.data.Clear();
  queue_.OnPosted(3);
  queue_.TakeFront();
  EXPECT_EQ(queue_.bytes(), 0u);
}

TEST_F(WorkQueueTest, OnlyThoseExpireThatAreDueAndNotPosted) {
  queue_.Push(New("a", 50));
  queue_.Push(New("b", 20));
  queue_.Push(New("c", 30));
  queue_.front().posted = true;
  EXPECT_EQ(queue_.next_deadline_ns(), 20);
  EXPECT_TRUE(queue_.TakeExpired(19).empty());
  const WorkList first = queue_.TakeExpired(20);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first.front().data.front(), "b");
  EXPECT_EQ(queue_.next_deadline_ns(), 30);
  EXPECT_EQ(queue_.TakeExpired(100).size(), 1u);
  EXPECT_EQ(queue_.size(), 1u);
  EXPECT_EQ(queue_.next_deadline_ns(), Work::kNever);
  EXPECT_EQ(queue_.bytes(), 1u);
}

TEST_F(WorkQueueTest, TheBytesOfAMessageAfterAWriteCount) {
  WorkList one = New("1234");
  one.front().kind = Work::Kind::kWrite;
  one.front().then = *pool_.Copy("56");
  queue_.Push(std::move(one));
  EXPECT_EQ(queue_.bytes(), 6u);
  queue_.TakeAll();
  EXPECT_EQ(queue_.bytes(), 0u);
  EXPECT_TRUE(queue_.empty());
}

}  // namespace
}  // namespace penstock::internal
