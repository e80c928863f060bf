#include <penstock/snapshot.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

using Pool = PoolStats;
using Class = PoolStats::Class;

// One series of every loop. Series of one metric stand together, as the format demands.
struct Series {
  const char* name;
  const char* help;
  const char* label;  // beside `loop`
  uint64_t (*value)(const LoopSnapshot&);
};

template <auto member>
uint64_t Of(const LoopSnapshot& loop) {
  return loop.*member;
}
template <auto member>
uint64_t OfPool(const LoopSnapshot& loop) {
  return loop.pool.*member;
}

constexpr char kConnections[] = "penstock_connections";
constexpr char kConnectionsHelp[] = "Connections by state.";
constexpr char kPinned[] = "penstock_pinned_bytes";
constexpr char kPinnedHelp[] = "Memory that streams hold, by the layer that holds it.";

constexpr char kSwitches[] = "penstock_engine_switches_total";
constexpr char kSwitchesHelp[] = "Streams that changed engine, by where they went.";
constexpr char kEngineFaults[] = "penstock_engine_faults_total";
constexpr char kEngineFaultsHelp[] = "Faults of an engine; they count as faults as well.";
constexpr char kListenerSwitches[] = "penstock_listener_switches_total";
constexpr char kListenerSwitchesHelp[] =
    "Listeners that changed engine, and those that stayed or were left with none.";
constexpr char kMoves[] = "penstock_loop_moves_total";
constexpr char kMovesHelp[] = "Streams that changed loop, by direction.";

// A name that ends in _total is a counter, any other a gauge.
constexpr Series kSeries[] = {
    {kConnections, kConnectionsHelp, "state=\"connecting\"", Of<&LoopSnapshot::connecting>},
    {kConnections, kConnectionsHelp, "state=\"open\"", Of<&LoopSnapshot::open>},
    {kConnections, kConnectionsHelp, "state=\"closing\"", Of<&LoopSnapshot::closing>},
    {"penstock_connections_uring", "Open connections that io_uring serves.", "",
     Of<&LoopSnapshot::open_uring>},
    {"penstock_connections_idle", "Open connections that hold no byte either way.", "",
     Of<&LoopSnapshot::idle>},
    {kPinned, kPinnedHelp, "layer=\"socket\"", Of<&LoopSnapshot::pinned_bytes>},
    {kPinned, kPinnedHelp, "layer=\"sealed\"", Of<&LoopSnapshot::sealed_pinned_bytes>},
    {kPinned, kPinnedHelp, "layer=\"framed\"", Of<&LoopSnapshot::framed_pinned_bytes>},
    {"penstock_listeners", "Listeners.", "", Of<&LoopSnapshot::listeners>},
    {"penstock_listeners_paused", "Listeners that take no connections for now.", "",
     Of<&LoopSnapshot::listeners_paused>},
    {"penstock_timers", "Armed timers.", "", Of<&LoopSnapshot::timers>},

    {"penstock_connections_accepted_total", "Connections accepted.", "",
     Of<&LoopSnapshot::accepted>},
    {"penstock_connections_connected_total", "Connections opened to a peer.", "",
     Of<&LoopSnapshot::connected>},
    {"penstock_connections_closed_total", "Connections closed.", "", Of<&LoopSnapshot::closed>},
    {"penstock_receives_total", "Pieces taken from the kernel.", "", Of<&LoopSnapshot::receives>},
    {"penstock_received_bytes_total", "Bytes taken from the kernel.", "",
     Of<&LoopSnapshot::bytes_in>},
    {"penstock_sent_bytes_total", "Bytes given to the kernel.", "", Of<&LoopSnapshot::bytes_out>},

    {"penstock_turns_total", "Turns of the loop.", "", Of<&LoopSnapshot::turns>},
    {"penstock_tasks_total", "Posted tasks run.", "", Of<&LoopSnapshot::tasks>},
    {"penstock_timers_fired_total", "Timers fired.", "", Of<&LoopSnapshot::timers_fired>},
    {"penstock_syscalls_total", "System calls made by the engines.", "",
     Of<&LoopSnapshot::syscalls>},
    {"penstock_sqes_total", "io_uring submissions.", "", Of<&LoopSnapshot::sqes>},
    {"penstock_cqes_total", "io_uring completions.", "", Of<&LoopSnapshot::cqes>},
    {"penstock_wakeups_total", "Wake-ups written because the loop slept.", "",
     Of<&LoopSnapshot::wakeups>},
    {"penstock_buffer_waits_total", "Receives put off for want of a buffer.", "",
     Of<&LoopSnapshot::buffer_waits>},
    {"penstock_ring_exhausted_total", "Receives ended by an empty io_uring buffer ring.", "",
     Of<&LoopSnapshot::ring_exhausted>},

    {"penstock_accept_errors_total", "Failed accepts, but for want of descriptors.", "",
     Of<&LoopSnapshot::accept_errors>},
    {"penstock_fd_exhausted_total", "Accepts that found no free descriptor.", "",
     Of<&LoopSnapshot::fd_exhausted>},
    {"penstock_accepts_refused_total", "Peers closed at once for want of a descriptor.", "",
     Of<&LoopSnapshot::accepts_refused>},
    {"penstock_connections_refused_total", "Connections refused at the limit.", "",
     Of<&LoopSnapshot::connections_refused>},
    {"penstock_writes_refused_total", "Writes refused by a full send queue.", "",
     Of<&LoopSnapshot::writes_refused>},
    {"penstock_peer_resets_total", "Connections that ended by a reset or an unreachable peer.", "",
     Of<&LoopSnapshot::peer_resets>},
    {"penstock_deadlines_total", "Deadlines that passed.", "", Of<&LoopSnapshot::deadlines>},
    {"penstock_faults_total", "Errors that are no peer's doing.", "", Of<&LoopSnapshot::faults>},
    {kEngineFaults, kEngineFaultsHelp, "engine=\"epoll\"", Of<&LoopSnapshot::faults_epoll>},
    {kEngineFaults, kEngineFaultsHelp, "engine=\"uring\"", Of<&LoopSnapshot::faults_uring>},

    {kSwitches, kSwitchesHelp, "to=\"epoll\"", Of<&LoopSnapshot::switches_to_epoll>},
    {kSwitches, kSwitchesHelp, "to=\"uring\"", Of<&LoopSnapshot::switches_to_uring>},
    {kListenerSwitches, kListenerSwitchesHelp, "outcome=\"moved\"",
     Of<&LoopSnapshot::listener_switches>},
    {kListenerSwitches, kListenerSwitchesHelp, "outcome=\"refused\"",
     Of<&LoopSnapshot::listener_switches_refused>},
    {kMoves, kMovesHelp, "way=\"in\"", Of<&LoopSnapshot::moves_in>},
    {kMoves, kMovesHelp, "way=\"out\"", Of<&LoopSnapshot::moves_out>},
    {kMoves, kMovesHelp, "way=\"back\"", Of<&LoopSnapshot::moves_back>},
    {"penstock_moves_refused_total", "Moves that left the stream where it was.", "",
     Of<&LoopSnapshot::moves_refused>},
    {"penstock_moves_stranded_total", "Streams that no engine took any more.", "",
     Of<&LoopSnapshot::stranded>},
    {"penstock_moves_late_completions_total", "Receives completed after their cancel, and kept.",
     "", Of<&LoopSnapshot::late_completions>},
    {"penstock_moves_carried_bytes_total", "Bytes taken along by moves.", "",
     Of<&LoopSnapshot::bytes_carried>},

    {"penstock_pool_live_bytes", "Pool memory in buffers. Loops may share a pool.", "",
     OfPool<&Pool::live>},
    {"penstock_pool_ring_bytes", "Pool memory lent to the kernel in buffer rings.", "",
     OfPool<&Pool::ring>},
    {"penstock_pool_cached_bytes", "Free pool memory in caches of loops.", "",
     OfPool<&Pool::cached>},
    {"penstock_pool_mapped_bytes", "Pool memory mapped from the kernel.", "",
     OfPool<&Pool::mapped>},
    {"penstock_pool_high_water_bytes", "Most pool memory ever handed out.", "",
     OfPool<&Pool::high_water>},
    {"penstock_pool_refused_total", "Allocations refused at the pool's limit.", "",
     OfPool<&Pool::refused>},
};

constexpr char kRefusals[] = "penstock_move_refusals_total";
constexpr char kRefusalsHelp[] = "Moves that left the stream where it was, by direction and cause.";
// In the order of MoveDirection, and of MoveRefusal.
constexpr std::array<const char*, kMoveDirections> kDirectionNames = {"to_epoll", "to_uring", "out",
                                                                      "in"};
constexpr std::array<const char*, kMoveRefusals> kRefusalNames = {"unsupported", "busy", "no_room",
                                                                  "gone",        "held", "error"};

constexpr char kPauses[] = "penstock_move_pause_seconds";
constexpr char kPausesHelp[] = "For how long moves kept their stream from being served.";

// One series of every tag of every loop's pool.
struct TagSeries {
  const char* name;
  const char* help;
  std::array<uint64_t, kBufferTagCount> Pool::*value;
};

constexpr TagSeries kTagSeries[] = {
    {"penstock_pool_tag_bytes", "Pool memory in buffers, by what it is used for.",
     &Pool::live_by_tag},
    {"penstock_pool_tag_high_water_bytes", "Most memory seen in buffers, by what it is used for.",
     &Pool::high_water_by_tag},
    {"penstock_pool_tag_refused_total", "Refused allocations, by what they were for.",
     &Pool::refused_by_tag},
};
// In the order of BufferTag.
constexpr std::array<const char*, kBufferTagCount> kTagNames = {"application", "receive", "ring",
                                                                "seal",        "rdma",    "frame"};

// One series of every size class of every loop's pool.
struct ClassSeries {
  const char* name;
  const char* help;
  uint64_t Class::*value;
};

constexpr ClassSeries kClassSeries[] = {
    {"penstock_pool_class_live_bytes", "Pool memory in buffers, by block size.", &Class::live},
    {"penstock_pool_class_cached_bytes", "Free memory in caches of loops, by block size.",
     &Class::cached},
    {"penstock_pool_class_mapped_bytes", "Mapped pool memory, by block size.", &Class::mapped},
    {"penstock_pool_class_high_water_bytes", "Most memory ever live or cached, by block size.",
     &Class::high_water},
    {"penstock_pool_class_refused_total", "Refused allocations, by block size.", &Class::refused},
};

void AppendHead(std::string& text, std::string_view name, const char* help,
                std::string_view type = {}) {
  if (type.empty()) type = name.ends_with("_total") ? "counter" : "gauge";
  absl::StrAppend(&text, "# HELP ", std::string(name), " ", help, "\n# TYPE ", std::string(name),
                  " ", std::string(type), "\n");
}

// Names, help and label values are this file's own and contain nothing that the format escapes.
void AppendSample(std::string& text, const char* name, size_t loop, const std::string& label,
                  uint64_t value) {
  absl::StrAppend(&text, name, "{loop=\"", loop, "\"", label.empty() ? "" : ",", label, "} ", value,
                  "\n");
}

// One histogram a loop: buckets are cumulative, and `le` is in seconds. A pause of 2^i us to the
// nanosecond stands in the bucket after the one that `le` names.
void AppendPauses(std::string& text, size_t loop, const LoopSnapshot& snapshot) {
  uint64_t below = 0;
  for (size_t i = 0; i < kPauseBuckets; ++i) {
    below += snapshot.move_pauses[i];
    const std::string le = i + 1 < kPauseBuckets
                               ? absl::StrFormat("%.6f", 1e-6 * static_cast<double>(1u << i))
                               : "+Inf";
    absl::StrAppend(&text, kPauses, "_bucket{loop=\"", loop, "\",le=\"", le, "\"} ", below, "\n");
  }
  constexpr uint64_t kNsOfSecond = 1'000'000'000;
  absl::StrAppendFormat(&text, "%s_sum{loop=\"%d\"} %d.%09d\n", kPauses, loop,
                        snapshot.move_pause_ns / kNsOfSecond, snapshot.move_pause_ns % kNsOfSecond);
  absl::StrAppend(&text, kPauses, "_count{loop=\"", loop, "\"} ", below, "\n");
}

std::string BlockLabel(const Class& size_class) {
  return size_class.block_size == 0 ? "block=\"large\""
                                    : absl::StrCat("block=\"", size_class.block_size, "\"");
}

}  // namespace

std::string PrometheusText(std::span<const LoopSnapshot> loops) {
  std::string text;
  const char* previous = "";
  for (const Series& series : kSeries) {
    if (std::string_view(series.name) != previous) AppendHead(text, series.name, series.help);
    previous = series.name;
    for (size_t loop = 0; loop < loops.size(); ++loop) {
      AppendSample(text, series.name, loop, series.label, series.value(loops[loop]));
    }
  }

  for (const TagSeries& series : kTagSeries) {
    AppendHead(text, series.name, series.help);
    for (size_t loop = 0; loop < loops.size(); ++loop) {
      for (size_t tag = 0; tag < kBufferTagCount; ++tag) {
        AppendSample(text, series.name, loop, absl::StrCat("tag=\"", kTagNames[tag], "\""),
                     (loops[loop].pool.*series.value)[tag]);
      }
    }
  }

  AppendHead(text, kRefusals, kRefusalsHelp);
  for (size_t loop = 0; loop < loops.size(); ++loop) {
    for (size_t direction = 0; direction < kMoveDirections; ++direction) {
      for (size_t why = 0; why < kMoveRefusals; ++why) {
        AppendSample(text, kRefusals, loop,
                     absl::StrCat("direction=\"", kDirectionNames[direction], "\",reason=\"",
                                  kRefusalNames[why], "\""),
                     loops[loop].moves_refused_by[direction][why]);
      }
    }
  }

  AppendHead(text, kPauses, kPausesHelp, "histogram");
  for (size_t loop = 0; loop < loops.size(); ++loop) AppendPauses(text, loop, loops[loop]);

  for (const ClassSeries& series : kClassSeries) {
    AppendHead(text, series.name, series.help);
    for (size_t loop = 0; loop < loops.size(); ++loop) {
      const Pool& pool = loops[loop].pool;
      for (size_t i = 0; i < std::min(pool.class_count, pool.classes.size()); ++i) {
        AppendSample(text, series.name, loop, BlockLabel(pool.classes[i]),
                     pool.classes[i].*series.value);
      }
    }
  }
  return text;
}

PENSTOCK_END_NAMESPACE
