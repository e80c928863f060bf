#include <penstock/snapshot.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace penstock {
namespace {

using Labels = std::map<std::string, std::string>;

struct Metric {
  std::string type;
  std::string help;
  std::map<Labels, uint64_t> samples;
  // Of a histogram: without `le`, in the order of the text; and sums in billionths.
  std::map<Labels, std::vector<std::pair<std::string, uint64_t>>> buckets;
  std::map<Labels, uint64_t> sums;
  std::map<Labels, uint64_t> counts;
};

// A strict reader of the text format 0.0.4, as far as the library uses it: it accepts no blank
// line, no stray space, no sample before its HELP and TYPE, no metric or sample twice.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {
    while (!text_.empty() && !::testing::Test::HasFailure()) Line();
  }

  std::map<std::string, Metric> metrics;

 private:
  static bool NameChar(char c, bool first) {
    return (c >= 'a' && c <= 'z') || c == '_' || (!first && c >= '0' && c <= '9');
  }

  std::string Name() {
    size_t size = 0;
    while (size < text_.size() && NameChar(text_[size], size == 0)) ++size;
    EXPECT_GT(size, 0u) << "no name at: " << text_.substr(0, 40);
    const std::string name(text_.substr(0, size));
    text_.remove_prefix(size);
    return name;
  }

  void Expect(std::string_view token) {
    ASSERT_TRUE(text_.starts_with(token)) << "no '" << token << "' at: " << text_.substr(0, 40);
    text_.remove_prefix(token.size());
  }

  bool Accept(std::string_view token) {
    if (!text_.starts_with(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }

  std::string UpTo(char end) {
    const size_t size = text_.find(end);
    EXPECT_NE(size, std::string_view::npos);
    const std::string taken(text_.substr(0, size));
    text_.remove_prefix(std::min(size, text_.size()));
    EXPECT_EQ(taken.find_first_of("\"\\\n"), std::string::npos) << "needs escaping: " << taken;
    return taken;
  }

  void Line() {
    if (Accept("# HELP ")) {
      current_ = Name();
      EXPECT_FALSE(metrics.contains(current_)) << current_ << " comes twice";
      Expect(" ");
      metrics[current_].help = UpTo('\n');
    } else if (Accept("# TYPE ")) {
      EXPECT_EQ(Name(), current_);
      EXPECT_TRUE(metrics[current_].type.empty() && metrics[current_].samples.empty());
      Expect(" ");
      metrics[current_].type = UpTo('\n');
    } else {
      const std::string name = Name();
      Metric& metric = metrics[current_];
      EXPECT_FALSE(metric.type.empty());
      Labels labels = ReadLabels();
      Expect(" ");
      if (metric.type != "histogram") {
        EXPECT_EQ(name, current_) << "a sample outside its group";
        EXPECT_TRUE(metric.samples.emplace(labels, Number()).second) << "a sample twice";
      } else if (name == current_ + "_bucket") {
        const std::string le = labels["le"];
        labels.erase("le");
        metric.buckets[labels].emplace_back(le, Number());
      } else if (name == current_ + "_sum") {
        const uint64_t whole = Number();
        Expect(".");
        const std::string_view before = text_;
        const uint64_t billionths = Number();
        EXPECT_EQ(before.size() - text_.size(), 9u);
        metric.sums[labels] = whole * 1'000'000'000 + billionths;
      } else {
        EXPECT_EQ(name, current_ + "_count") << "a sample outside its group";
        metric.counts[labels] = Number();
      }
    }
    Expect("\n");
  }

  uint64_t Number() {
    uint64_t value = 0;
    const auto [stop, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
    EXPECT_EQ(error, std::errc());
    text_.remove_prefix(stop - text_.data());
    return value;
  }

  Labels ReadLabels() {
    Labels labels;
    Expect("{");
    do {
      const std::string name = Name();
      Expect("=\"");
      EXPECT_TRUE(labels.emplace(name, UpTo('"')).second) << "a label twice";
      Expect("\"");
    } while (Accept(","));
    Expect("}");
    return labels;
  }

  std::string_view text_;
  std::string current_;
};

// A snapshot in which every figure is another number: 1000, 1001, ...
LoopSnapshot Numbered(std::vector<uint64_t>& values) {
  LoopSnapshot loop;
  uint64_t next = 1000;
  const auto number = [&](uint64_t& figure) { values.push_back(figure = next++); };
  // The figures before `pool` are 64-bit integers and nothing else, and a new one must show up.
  const size_t count = offsetof(LoopSnapshot, pool) / sizeof(uint64_t);
  std::vector<uint64_t> figures(count);
  for (uint64_t& figure : figures) number(figure);
  std::memcpy(static_cast<void*>(&loop), figures.data(), count * sizeof(uint64_t));
  for (uint64_t* figure : {&loop.pool.live, &loop.pool.ring, &loop.pool.cached, &loop.pool.mapped,
                           &loop.pool.high_water, &loop.pool.refused}) {
    number(*figure);
  }
  for (auto* figures_by_tag :
       {&loop.pool.live_by_tag, &loop.pool.high_water_by_tag, &loop.pool.refused_by_tag}) {
    for (uint64_t& figure : *figures_by_tag) number(figure);
  }
  loop.pool.class_count = 2;
  for (size_t i = 0; i < 2; ++i) {
    PoolStats::Class& size_class = loop.pool.classes[i];
    size_class.block_size = i == 0 ? 256 : 0;
    for (uint64_t* figure : {&size_class.live, &size_class.cached, &size_class.mapped,
                             &size_class.high_water, &size_class.refused}) {
      number(*figure);
    }
  }
  return loop;
}

TEST(PrometheusText, IsStrictlyTheTextFormat) {
  std::vector<uint64_t> values;
  const LoopSnapshot loops[] = {Numbered(values), LoopSnapshot()};
  const Reader reader(PrometheusText(loops));
  EXPECT_GT(reader.metrics.size(), 30u);
  for (const auto& [name, metric] : reader.metrics) {
    EXPECT_TRUE(name.starts_with("penstock_")) << name;
    EXPECT_TRUE(metric.help.ends_with(".")) << name;
    if (metric.type == "histogram") {
      EXPECT_TRUE(name.ends_with("_seconds")) << name;
      EXPECT_EQ(metric.buckets.size(), std::size(loops)) << name;
      continue;
    }
    EXPECT_EQ(metric.type, name.ends_with("_total") ? "counter" : "gauge") << name;
    EXPECT_FALSE(metric.samples.empty()) << name;
    for (const auto& [labels, value] : metric.samples) EXPECT_TRUE(labels.contains("loop"));
  }
}

TEST(PrometheusText, TellsEveryFigureOnce) {
  std::vector<uint64_t> expected;
  const LoopSnapshot loop = Numbered(expected);
  const Reader reader(PrometheusText({&loop, 1}));
  std::vector<uint64_t> told;
  for (const auto& [name, metric] : reader.metrics) {
    for (const auto& [labels, value] : metric.samples) told.push_back(value);
    for (const auto& [labels, sum] : metric.sums) told.push_back(sum);
    for (const auto& [labels, buckets] : metric.buckets) {
      uint64_t below = 0;
      for (const auto& [le, count] : buckets) told.push_back(count - std::exchange(below, count));
    }
  }
  std::sort(told.begin(), told.end());
  EXPECT_EQ(told, expected);
}

TEST(PrometheusText, FiguresStandUnderTheirNames) {
  LoopSnapshot first;
  first.open = 3;
  first.closing = 1;
  first.bytes_in = 12345;
  first.sealed_pinned_bytes = 512;
  first.pool.live_by_tag[static_cast<size_t>(BufferTag::kRing)] = 16384;
  LoopSnapshot second;
  second.open = 4;
  second.faults = UINT64_MAX;
  constexpr auto kOut = static_cast<size_t>(MoveDirection::kOut);
  second.moves_refused_by[kOut][static_cast<size_t>(MoveRefusal::kNoRoom)] = 7;
  second.pool.class_count = 1;
  second.pool.classes[0].block_size = 4096;
  second.pool.classes[0].live = 8192;
  const LoopSnapshot loops[] = {first, second};
  Reader reader(PrometheusText(loops));

  auto& connections = reader.metrics["penstock_connections"].samples;
  EXPECT_EQ(connections.size(), 6u);
  EXPECT_EQ((connections[{{"loop", "0"}, {"state", "open"}}]), 3u);
  EXPECT_EQ((connections[{{"loop", "1"}, {"state", "open"}}]), 4u);
  EXPECT_EQ((connections[{{"loop", "0"}, {"state", "closing"}}]), 1u);
  EXPECT_EQ((reader.metrics["penstock_pinned_bytes"].samples[{{"loop", "0"}, {"layer", "sealed"}}]),
            512u);
  EXPECT_EQ((reader.metrics["penstock_received_bytes_total"].samples[{{"loop", "0"}}]), 12345u);
  EXPECT_EQ((reader.metrics["penstock_faults_total"].samples[{{"loop", "1"}}]), UINT64_MAX);
  EXPECT_EQ((reader.metrics["penstock_pool_tag_bytes"].samples[{{"loop", "0"}, {"tag", "ring"}}]),
            16384u);
  EXPECT_EQ((reader.metrics["penstock_move_refusals_total"]
                 .samples[{{"loop", "1"}, {"direction", "out"}, {"reason", "no_room"}}]),
            7u);
  const auto& classes = reader.metrics["penstock_pool_class_live_bytes"].samples;
  EXPECT_EQ(classes, (std::map<Labels, uint64_t>{{{{"block", "4096"}, {"loop", "1"}}, 8192}}));
}

// https://prometheus.io/docs/instrumenting/exposition_formats/: buckets grow up to +Inf, which says
// what _count does.
TEST(PrometheusText, PausesAreAHistogram) {
  LoopSnapshot loop;
  loop.move_pauses[0] = 2;
  loop.move_pauses[6] = 5;
  loop.move_pauses[kPauseBuckets - 1] = 1;
  loop.move_pause_ns = 12'000'345'678;
  Reader reader(PrometheusText({&loop, 1}));
  Metric& pauses = reader.metrics["penstock_move_pause_seconds"];
  EXPECT_EQ(pauses.type, "histogram");
  const Labels labels = {{"loop", "0"}};
  EXPECT_EQ(pauses.sums[labels], 12'000'345'678u);
  EXPECT_EQ(pauses.counts[labels], 8u);
  const auto& buckets = pauses.buckets[labels];
  ASSERT_EQ(buckets.size(), kPauseBuckets);
  EXPECT_EQ(buckets[0], (std::pair<std::string, uint64_t>("0.000001", 2)));
  EXPECT_EQ(buckets[5], (std::pair<std::string, uint64_t>("0.000032", 2)));
  EXPECT_EQ(buckets[6], (std::pair<std::string, uint64_t>("0.000064", 7)));
  EXPECT_EQ(buckets[22], (std::pair<std::string, uint64_t>("4.194304", 7)));
  EXPECT_EQ(buckets[23], (std::pair<std::string, uint64_t>("+Inf", 8)));
}

TEST(PrometheusText, NoLoopsHaveNoSamples) {
  const Reader reader(PrometheusText({}));
  for (const auto& [name, metric] : reader.metrics) {
    EXPECT_TRUE(metric.samples.empty() && metric.buckets.empty()) << name;
  }
}

}  // namespace
}  // namespace penstock
