#include "secure/alts_wire.h"

#include <gtest/gtest.h>

#include <string>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

TEST(AltsWire, WritesWhatProtobufDoes) {
  ProtoWriter writer;
  writer.Number(1, 150);  // the encoding guide's own example
  EXPECT_EQ(writer.bytes(), "\x08\x96\x01");
  writer.Bytes(2, "testing");
  EXPECT_EQ(writer.bytes(), "\x08\x96\x01\x12\x07testing");
  writer.Number(3, 0);
  writer.Bytes(4, "");
  EXPECT_EQ(writer.bytes().size(), 12u);
  writer.Element(16, "");
  EXPECT_EQ(writer.Take().substr(12), std::string("\x82\x01\x00", 3));
}

TEST(AltsWire, ReadsWhatWasWritten) {
  ProtoWriter writer;
  writer.Number(1, UINT64_MAX);
  writer.Element(536870911, std::string(300, 'x'));
  writer.Number(2, 1);
  ProtoReader reader(writer.bytes());
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.field(), 1u);
  EXPECT_EQ(reader.Number(), UINT64_MAX);
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.field(), 536870911u);
  EXPECT_EQ(reader.Bytes(), std::string(300, 'x'));
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.Number(), 1u);
  EXPECT_FALSE(reader.Next());
  EXPECT_TRUE(reader.ok());
}

TEST(AltsWire, SkipsFixedFields) {
  ProtoReader reader(
      "\x09"
      "12345678"
      "\x0d"
      "1234"
      "\x10\x05");
  ASSERT_TRUE(reader.Next());
  ASSERT_TRUE(reader.Next());
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.field(), 2u);
  EXPECT_EQ(reader.Number(), 5u);
  EXPECT_FALSE(reader.Next());
  EXPECT_TRUE(reader.ok());
}

TEST(AltsWire, FindsEveryWayToBeMalformed) {
  for (const std::string& bad :
       {std::string("\x08"),                                          // no value
        std::string("\x08\x80"),                                      // a value cut short
        std::string("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),  // of more than 64 bits
        std::string("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
        std::string("\x00\x01", 2),  // field 0
        std::string("\x0a\x02x"),    // shorter than it says
        std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        std::string("\x09"
                    "1234567"),
        std::string("\x0d"
                    "123"),
        std::string("\x0b"), std::string("\x0c"),  // groups
        std::string("\x0e\x01"), std::string("\x0f\x01"),
        std::string("\x80\x80\x80\x80\x80\x01\x01")}) {  // a field number out of bounds
    ProtoReader reader(bad);
    EXPECT_FALSE(reader.Next());
    EXPECT_FALSE(reader.ok());
    EXPECT_FALSE(reader.Next());
  }
}

TEST(AltsWire, AFieldOfAnotherTypeIsMalformed) {
  ProtoReader number("\x08\x05");
  ASSERT_TRUE(number.Next());
  EXPECT_EQ(number.Bytes(), "");
  EXPECT_FALSE(number.ok());
  ProtoReader bytes("\x0a\x01x");
  ASSERT_TRUE(bytes.Next());
  EXPECT_EQ(bytes.Number(), 0u);
  EXPECT_FALSE(bytes.ok());
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
