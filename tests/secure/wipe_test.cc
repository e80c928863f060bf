#include "secure/wipe.h"

#include <string>

#include <gtest/gtest.h>

namespace {

TEST(WipeSecret, ZeroesExactlyTheSecret) {
  std::string bytes = "[secret]";
  penstock::internal::WipeSecret(bytes.data() + 1, 6);
  EXPECT_EQ(bytes, std::string("[\0\0\0\0\0\0]", 8));
  penstock::internal::WipeSecret(bytes.data(), 0);
  EXPECT_EQ(bytes[0], '[');
}

}  // namespace
