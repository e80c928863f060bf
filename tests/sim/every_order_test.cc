// Every order of what may happen around a move, on the shipped code: what the peer, the owner, the
// kernel and the loops do is cut into steps, and all their interleavings are told, each in a world
// of its own. Few things happen, so all orders can; the seeds of seeds_test.cc are for many things.
//
// A step of a loop is one turn with at most one event in it, so completions are dispatched before
// or after anything else. A step of the kernel is all that it has to do: cancels, deliveries.
#include <gtest/gtest.h>
#include <penstock/buffer.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>
#include <sys/socket.h>

#include <cstdio>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "testing/fate.h"
#include "testing/sanitized.h"
#include "testing/sim_choices.h"
#include "testing/sim_wire.h"
#include "testing/sim_world.h"

namespace penstock::testing {
namespace {

using internal::Fate;

// From which engine to which, on the same loop or from one to another.
struct Way {
  const char* name;
  SimStyle from;
  SimStyle to;
  bool migrates;
};

constexpr Way kWays[] = {
    {"SwitchToReadiness", SimStyle::kCompletion, SimStyle::kReadiness, false},
    {"SwitchToCompletion", SimStyle::kReadiness, SimStyle::kCompletion, false},
    {"MigrateToReadiness", SimStyle::kCompletion, SimStyle::kReadiness, true},
    {"MigrateToCompletion", SimStyle::kReadiness, SimStyle::kCompletion, true},
    {"MigrateCompletion", SimStyle::kCompletion, SimStyle::kCompletion, true},
};

// What happens, a letter each; the letters of one word keep their order.
//   the peer: d sends a byte, f ends its stream, r resets
//   the owner: m moves, w writes more than the kernel takes at once, x cancels the read, a reads,
//   s ends sending, t sets a deadline for reads, b moves back to where it began, c closes
//   the clock: p, what t has set passes
struct Cast {
  const char* peer;
  const char* owner;
  bool reads;            // a read waits from the beginning, and each is followed by another
  bool early_terminals;  // a receive may end with the byte it carries
  bool refuses = false;  // engines may refuse to take the stream, the old one as well
};

constexpr Cast kCasts[] = {
    // For moves to another loop as well, which has turns of its own: ten times as many orders.
    {"ddf", "", true, true},
    {"ddr", "", true, true},
    {"df", "w", true, false},
    {"dr", "c", true, true},
    {"d", "xa", true, true},
    {"df", "a", false, true},
    {"d", "wc", true, false},
    {"df", "s", true, false},
    {"d", "t", true, false},
    {"df", "b", true, true},
    {"ddf", "", true, false, true},
    // For switches.
    {"df", "xa", true, true},
    {"ddf", "w", true, false},
    {"ddr", "w", true, false},
    {"ddf", "c", true, false},
    {"ddf", "a", false, true},
    {"ddr", "a", false, false},
    {"df", "ws", true, false},
    {"df", "t", true, true},
    {"dr", "b", true, false},
    {"d", "wb", true, false},
    {"df", "w", true, true, true},
};
constexpr size_t kCastsOfMigrate = 11;

EngineKind KindOf(SimStyle style) {
  return style == SimStyle::kReadiness ? EngineKind::kEpoll : EngineKind::kUring;
}

constexpr std::string_view kReply = "reply";
constexpr absl::Duration kDeadline = absl::Milliseconds(1);

// One order.
class Story {
 public:
  Story(const Way& way, const Cast& cast, SimMutant mutant, BufferPool& pool, SimChoices& choices)
      : way_(way), cast_(cast), choices_(choices), world_(1), pool_(pool) {
    world_.set_mutant(mutant);
    first_ = NewLoop(way.from);
    if (way.migrates) second_ = NewLoop(way.to);
    Open();
  }

  // What was wrong, empty when nothing was.
  std::string Tell() {
    if (server_ == nullptr) return "the stream does not open";
    world_.faults().early_terminal = cast_.early_terminals ? 500 : 0;
    if (cast_.refuses) world_.faults().attach_failure = 500;
    world_.wire().set_buffers(kReply.size() - 1, 1000);
    words_ = {cast_.peer, "m", cast_.owner};
    if (Has('t')) words_.push_back("p");
    if (cast_.reads) {
      Read();
      world_.Touch(*first_);
      world_.Run([] { return false; }, absl::Seconds(1));
    }
    world_.HoldCancels(true);
    world_.random().Follow(&choices_);
    while (Step()) {
    }
    world_.random().Follow(nullptr);
    world_.HoldCancels(false);
    Finish();
    return wrong_.empty() ? wrong_ : absl::StrCat(wrong_, "; the steps: ", steps_);
  }

 private:
  std::unique_ptr<Loop> NewLoop(SimStyle style) {
    LoopOptions options;
    options.pool = &pool_;
    options.engine = KindOf(style);
    options.turn_events_max = 1;
    options.idle_trim = absl::InfiniteDuration();  // a story is no time to give memory back
    return *world_.NewLoop(std::move(options), style);
  }

  void Open() {
    auto listener = Listener::Listen(*first_, *SocketAddress::Parse("10.0.0.1:0"), {},
                                     [this](StreamPtr stream) { server_ = std::move(stream); });
    peer_ = world_.wire().Connect((*listener)->address());
    world_.Run([] { return false; }, absl::Seconds(1));
    link_ = world_.wire().links().back().get();
  }

  bool Has(char step) const {
    return std::string_view(cast_.owner).find(step) != std::string::npos;
  }

  // --- Steps ---

  // Takes one of the steps that are possible; false when all words have been said.
  bool Step() {
    std::string possible;
    bool said = true;
    for (std::string_view word : words_) {
      if (word.empty()) continue;
      said = false;
      // While it may be on its way, the stream is its callbacks' alone.
      const bool owners = std::string_view("dfrp").find(word[0]) == std::string_view::npos;
      if (!owners || !migrating()) possible += word[0];
    }
    if (said) return false;
    if (world_.HasHeld()) possible += 'k';
    if (world_.HasTurn(*first_)) possible += '1';
    if (second_ != nullptr && world_.HasTurn(*second_)) possible += '2';
    const char step = possible[choices_.Choose(possible.size())];
    steps_ += step;
    for (std::string_view& word : words_) {
      if (word.starts_with(step)) word.remove_prefix(1);
    }
    Take(step);
    world_.wire().Heal();  // delivers now, before what waits for its turn
    world_.TakeActions();
    return true;
  }

  void Take(char step) {
    switch (step) {
      case 'k':
        return world_.TakeHeld();
      case '1':
        return world_.TakeTurn(*first_);
      case '2':
        return world_.TakeTurn(*second_);
      case 'd':
        return Send();
      case 'f':
        world_.wire().Shutdown(peer_, SHUT_WR);
        return;
      case 'r':
        return world_.wire().Close(std::exchange(peer_, -1), true);
      case 'p':
        return world_.Pass(3 * kDeadline);
      default:
        break;
    }
    if (server_ == nullptr) return;
    Loop& loop = server_->loop();
    Own(step);
    world_.Touch(loop);
  }

  void Own(char step) {
    switch (step) {
      case 'm':
        asked_ = true;
        goes_back_ = false;
        return way_.migrates ? Migrate(*server_, second_->handle(), Done(moved_))
                             : SwitchEngine(*server_, KindOf(way_.to), Done(moved_));
      case 'b':
        asked_back_ = goes_back_ = true;
        return way_.migrates ? Migrate(*server_, first_->handle(), Done(back_))
                             : SwitchEngine(*server_, KindOf(way_.from), Done(back_));
      case 's':
        shut_ = true;
        return server_->ShutdownWrite(Done(shut_down_));
      case 't':
        timed_ = true;
        return server_->SetReadDeadline(kDeadline);
      case 'w':
        wrote_ = true;
        return server_->Write(*pool_.Copy(kReply), Done(written_));
      case 'x':
        cancelled_ = reading_;
        return server_->CancelRead();
      case 'a':
        again_ = true;
        if (!reading_ && !end_.has_value()) Read();
        return;
      default:
        server_.reset();
    }
  }

  void Send() {
    const char byte = static_cast<char>('a' + sent_++);
    const iovec part{.iov_base = const_cast<char*>(&byte), .iov_len = 1};
    // The room of two sends at once; -EPIPE when the stream has gone.
    if (world_.wire().Send(peer_, {&part, 1}) != 1) --sent_;
  }

  bool migrating() const {
    return way_.migrates && ((asked_ && !moved_.ended()) || (asked_back_ && !back_.ended()));
  }
  // No engine took it.
  bool stranded() const {
    return first_->Snapshot().stranded + (second_ ? second_->Snapshot().stranded : 0) > 0;
  }

  // --- Callbacks ---

  Stream::DoneCallback Done(Fate& fate) {
    return [this, done = fate.OnDone()](absl::Status status) mutable {
      CheckTurn();
      std::move(done)(std::move(status));
    };
  }

  void Read() {
    reading_ = true;
    ++reads_;
    server_->ReadReady([this, fate = read_.OnRead()](absl::StatusOr<Buffer> bytes) mutable {
      CheckTurn();
      reading_ = false;
      if (bytes.ok()) {
        got_ += bytes->view();
      } else if (absl::IsCancelled(bytes.status()) && std::exchange(cancelled_, false)) {
        if (!again_) return;
      } else if (absl::IsDeadlineExceeded(bytes.status()) && timed_ && !expired_) {
        expired_ = true;
        server_->SetReadDeadline(absl::InfiniteDuration());
      } else if (end_.has_value()) {
        return Wrong("a second end");
      } else {
        OnEnd(bytes.status());
      }
      std::move(fate)(std::move(bytes));
      if (!end_.has_value()) Read();
    });
  }

  void OnEnd(const absl::Status& end) {
    end_ = end;
    if (stranded()) return;
    const SimSide& mine = link_->sides[1];
    if (got_.size() != mine.received || mine.waiting() > 0) {
      Wrong(absl::StrCat("an end after ", got_.size(), " bytes of ", mine.received, " taken and ",
                         mine.waiting(), " waiting"));
    }
    if (IsEof(end) && !mine.fin_arrived) Wrong("an end of stream that nobody sent");
    if (IsEof(end) && got_.size() != sent_) Wrong("an end of stream before the last byte");
    if (IsReset(end) && !mine.failed) Wrong("a reset that nobody sent");
    if (!IsEof(end) && !IsReset(end)) Wrong("another end: " + end.ToString());
  }

  void CheckTurn() {
    if (server_ == nullptr) return Wrong("a callback of a stream that has gone");
    if (!world_.Busy(server_->loop())) Wrong("a callback outside a turn of its loop");
  }

  void Wrong(std::string_view what) {
    if (wrong_.empty()) wrong_ = what;
  }

  // --- The end ---

  void Finish() {
    world_.Run([] { return false; }, absl::Seconds(1));
    if (server_ != nullptr) {
      if (!reading_ && !end_.has_value()) Read();
      world_.Touch(server_->loop());
      world_.Run([] { return false; }, absl::Seconds(1));
      CheckStream();
    }
    const bool open = server_ != nullptr;
    server_.reset();
    world_.Run([] { return false; }, absl::Seconds(1));
    if (peer_ >= 0) world_.wire().Close(peer_, false);
    world_.Run([] { return false; }, absl::Seconds(1));
    CheckCallbacks(open);
    CheckLoop(*first_);
    if (second_ != nullptr) CheckLoop(*second_);
    first_ = nullptr;
    second_ = nullptr;
    const PoolStats stats = pool_.Stats();
    if (stats.live + stats.ring > 0) Wrong("buffers are left (I2)");
    if (world_.descriptors_open() > 0) Wrong("descriptors are left");
    for (const std::string& error : world_.errors()) Wrong(error);
  }

  void CheckStream() {
    const SimSide& mine = link_->sides[1];
    for (size_t i = 0; i < got_.size(); ++i) {
      if (got_[i] != static_cast<char>('a' + i)) Wrong("wrong bytes: " + got_);
    }
    if (stranded()) {
      if (moved_.status().ok() || !end_.has_value() || end_->ok()) Wrong("stranded, and not told");
      return;
    }
    const std::string_view peer = cast_.peer;
    if (got_.size() != mine.received) Wrong("bytes have gone: " + got_);
    if (peer.back() != 'r' && got_.size() != sent_) Wrong("bytes are missing: " + got_);
    if (peer.back() == 'd' && end_.has_value()) Wrong("an end that nobody sent");
    if (peer.back() == 'f' && !(end_.has_value() && IsEof(*end_))) Wrong("no end of stream");
    if (peer.back() == 'r' && !(end_.has_value() && IsReset(*end_))) Wrong("no reset");
    if (timed_ && peer.back() == 'd' && !expired_) Wrong("a deadline that does not pass");
    if (shut_ && !shut_down_.status().ok()) Wrong("the end of sending fails");
    if (shut_ && !link_->sides[0].fin_arrived) Wrong("the peer does not hear of the end");
    CheckPlace();
    if (wrote_ && written_.status().ok() != (mine.sent == kReply.size())) {
      Wrong("a write that was not taken ends well, or the other way round");
    }
    if (wrote_ && peer.back() != 'r' && link_->sides[0].arrived != kReply) {
      Wrong("the peer gets " + link_->sides[0].arrived);
    }
  }

  // The last that was asked for counts, and what it took the place of says so.
  void CheckPlace() {
    const Fate& last = goes_back_ ? back_ : moved_;
    const Fate& before = goes_back_ ? moved_ : back_;
    const bool refused = cast_.refuses && absl::IsResourceExhausted(last.status());
    const bool stays = goes_back_ || refused;
    if (!last.status().ok() && !refused) Wrong("the move fails: " + last.status().ToString());
    if (asked_back_ && !before.status().ok() && !absl::IsCancelled(before.status())) {
      Wrong("the move before fails: " + before.status().ToString());
    }
    const Loop* const loop = stays || !way_.migrates ? first_.get() : second_.get();
    if (&server_->loop() != loop) Wrong("it is on another loop than it should be");
    if (server_->stats().engine != KindOf(stays ? way_.from : way_.to)) {
      Wrong("it is with another engine than it should be");
    }
  }

  void CheckCallbacks(bool was_open) {
    const auto check = [&](const Fate& fate, int asked, const char* what) {
      if (fate.runs() + fate.dropped() != asked) Wrong(absl::StrCat(what, " not exactly once"));
    };
    check(moved_, asked_ ? 1 : 0, "the move's callback");
    check(back_, asked_back_ ? 1 : 0, "the callback of the move back");
    check(shut_down_, shut_ ? 1 : 0, "the callback of the end of sending");
    check(written_, wrote_ ? 1 : 0, "the write's callback");
    check(read_, reads_, "the reads' callbacks");
    if (was_open && moved_.dropped() > 0) Wrong("the move's callback is dropped");
  }

  void CheckLoop(const Loop& loop) {
    const LoopSnapshot s = loop.Snapshot();
    if (s.open + s.closing + s.connecting > 0) Wrong("a connection is left");
    if (s.stranded + s.moves_refused > 0 && !cast_.refuses) Wrong("a move was refused");
    if (s.pinned_bytes > 0) Wrong("bytes are left pinned (I1)");
  }

  const Way& way_;
  const Cast& cast_;
  SimChoices& choices_;
  SimWorld world_;
  BufferPool& pool_;
  std::unique_ptr<Loop> first_;
  std::unique_ptr<Loop> second_;
  StreamPtr server_;
  const SimLink* link_ = nullptr;
  int peer_ = -1;
  std::vector<std::string_view> words_;
  std::string steps_;
  std::string wrong_;

  size_t sent_ = 0;
  std::string got_;
  std::optional<absl::Status> end_;
  bool asked_ = false;
  bool wrote_ = false;
  bool reading_ = false;
  bool cancelled_ = false;
  bool again_ = false;
  bool timed_ = false;
  bool expired_ = false;
  bool shut_ = false;
  bool asked_back_ = false;
  bool goes_back_ = false;
  int reads_ = 0;
  Fate moved_;
  Fate back_;
  Fate shut_down_;
  Fate written_;
  Fate read_;
};

class EveryOrder : public ::testing::TestWithParam<Way> {
 protected:
  // Tells all stories of `cast`; the first that goes wrong, or "". Adds to `told_`.
  std::string TellAll(const Cast& cast, SimMutant mutant) {
    SimChoices choices;
    do {
      ++told_;
      const std::string wrong = Story(GetParam(), cast, mutant, pool_, choices).Tell();
      if (!wrong.empty()) return wrong;
    } while (choices.Next());
    return "";
  }

  static std::string NameOf(const Cast& cast) {
    return absl::StrCat("peer ", cast.peer, ", owner m ", cast.owner,
                        cast.reads ? ", reading" : "");
  }

  BufferPool pool_;
  uint64_t told_ = 0;
};

TEST_P(EveryOrder, LosesNothing) {
  if (kThreadSanitized) GTEST_SKIP() << kNoThreads;
  // Stories that migrate are longer; a sanitizer sees more in each and takes some ten times as
  // long.
  size_t casts = std::size(kCasts);
  if (GetParam().migrates || kSanitized) casts = kCastsOfMigrate;
  if (GetParam().migrates && kSanitized) casts = 1;
  for (const Cast& cast : std::span(kCasts).first(casts)) {
    const uint64_t before = told_;
    const std::string wrong = TellAll(cast, SimMutant::kNone);
    EXPECT_EQ(wrong, "") << NameOf(cast);
    EXPECT_GT(told_ - before, 100u) << NameOf(cast);
    std::printf("%s: %llu orders\n", NameOf(cast).c_str(),
                static_cast<unsigned long long>(told_ - before));
  }
}

// From an engine of the completion style, for the other has no completion to lose.
class EveryOrderOfCompletions : public EveryOrder {};

TEST_P(EveryOrderOfCompletions, SeesMutants) {
  for (const SimMutant mutant :
       {SimMutant::kDropLateData, SimMutant::kSkipTerminal, SimMutant::kTwoOwners}) {
    for (const Cast& cast : std::span(kCasts).first(2)) {
      const std::string wrong = TellAll(cast, mutant);
      EXPECT_NE(wrong, "") << "mutant " << static_cast<int>(mutant);
      std::printf("mutant %d: %s\n", static_cast<int>(mutant), wrong.c_str());
    }
  }
}

const auto kNameOfWay = [](const auto& info) { return std::string(info.param.name); };

INSTANTIATE_TEST_SUITE_P(Ways, EveryOrder, ::testing::ValuesIn(kWays), kNameOfWay);
INSTANTIATE_TEST_SUITE_P(Ways, EveryOrderOfCompletions,
                         ::testing::Values(kWays[0], kWays[2], kWays[4]), kNameOfWay);

}  // namespace
}  // namespace penstock::testing
