// FlowHarness: messages that flow between two endpoints, one direction at a time, and are checked
// as they come.
#ifndef PENSTOCK_TESTS_TESTING_RDMA_FLOW_H_
#define PENSTOCK_TESTS_TESTING_RDMA_FLOW_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <algorithm>
#include <deque>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/fate.h"
#include "testing/rdma_pair.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class FlowHarness : public RdmaHarness {
 protected:
  // Receives for ever; both endpoints outlive it, or end before it goes, or their receives are
  // cancelled by then.
  struct Flow {
    Flow(RdmaEndpoint& sender, RdmaEndpoint& receiver) : from(sender), to(receiver) { Next(); }
    void Next() {
      to.Receive([this](absl::StatusOr<BufferChain> message) {
        if (!message.ok()) return;
        EXPECT_TRUE(message->ToString() == texts[received]) << received << ": " << message->size();
        ++received;
        Next();
      });
    }
    bool done() const {
      return received == texts.size() &&
             std::all_of(fates.begin(), fates.end(), [](const Fate& fate) { return fate.ended(); });
    }
    RdmaEndpoint& from;
    RdmaEndpoint& to;
    size_t received = 0;
    std::deque<std::string> texts;  // of all that were started
    std::deque<Fate> fates;
  };
  void Start(Flow& flow, std::string text) {
    flow.texts.push_back(std::move(text));
    flow.from.Send(Chain(flow.texts.back()), flow.fates.emplace_back().OnDone());
  }
  void ExpectDone(Flow& flow) {
    ASSERT_TRUE(Drive([&] { return flow.done(); })) << flow.received << " of " << flow.texts.size();
    for (const Fate& fate : flow.fates) EXPECT_TRUE(fate.status().ok()) << fate.status();
  }
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_RDMA_FLOW_H_
