// The arithmetic of links, on made-up clocks, and the reading of their texts.
#include "comm/link_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/ring.h"
#include "runtime/core/error.h"

namespace rz {
namespace {

using comm::LinkHistory;
using comm::LinkModel;
using comm::LinkPort;
using comm::LinkSpec;
using comm::NetworkSpec;
using comm::parse_network;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kUs = 1000;
constexpr size_t kSize = 125'000;  // 1 ms at 1 Gbit/s

// All ranks of a network, on a clock that the test moves.
struct Ranks {
  explicit Ranks(const NetworkSpec& network, int ranks)
      : model(network, ranks),
        ports(static_cast<size_t>(model.ports())),
        histories(static_cast<size_t>(ranks), std::vector<LinkHistory>(2)) {}

  LinkModel::Departure depart(int from, int to, size_t bytes, int64_t now) {
    auto& history = histories[static_cast<size_t>(from)][static_cast<size_t>(model.port_kind(from, to))];
    return model.depart(ports[static_cast<size_t>(model.port_of(from, to))], history, from, to, bytes, now);
  }
  int64_t arrive(int from, int to, size_t bytes, int64_t first) {
    return model.arrive(ports[static_cast<size_t>(model.port_of(to, from))], from, to, bytes, first);
  }
  int64_t send(int from, int to, size_t bytes, int64_t now) { return arrive(from, to, bytes, depart(from, to, bytes, now).first_ns); }

  LinkModel model;
  std::vector<LinkPort<int64_t>> ports;
  std::vector<std::vector<LinkHistory>> histories;
};

TEST(LinkModel, ALoneMessageTakesItsSizeOverTheRatePlusTheLatency) {
  Ranks ranks(parse_network("1Gbit,50us"), 2);
  const auto departure = ranks.depart(0, 1, kSize, 7);
  EXPECT_EQ(departure.left_ns, 7 + 1000 * kUs);
  EXPECT_EQ(departure.first_ns, 7 + 50 * kUs);
  EXPECT_EQ(ranks.arrive(0, 1, kSize, departure.first_ns), 7 + 1050 * kUs);
  // An empty message takes the latency, and an unlimited link no time.
  EXPECT_EQ(ranks.send(0, 1, 0, 9000 * kUs), 9050 * kUs);
  EXPECT_EQ(Ranks(parse_network("unlimited"), 2).send(0, 1, kSize, 5), 5);
}

TEST(LinkModel, MessagesOfASenderQueue) {
  Ranks ranks(parse_network("1Gbit,50us"), 3);
  EXPECT_EQ(ranks.send(0, 1, kSize, 0), 1050 * kUs);
  EXPECT_EQ(ranks.send(0, 1, kSize, 0), 2050 * kUs);
  EXPECT_EQ(ranks.send(0, 2, kSize, 100), 3050 * kUs) << "another receiver, the same port";
  EXPECT_EQ(ranks.send(0, 2, kSize, 9000 * kUs), 10'050 * kUs) << "the port has been free for long";
  EXPECT_EQ(ranks.send(1, 0, kSize, 0), 1050 * kUs) << "the other direction is free";
}

TEST(LinkModel, MessagesToAReceiverQueue) {
  Ranks ranks(parse_network("1Gbit,50us"), 4);
  EXPECT_EQ(ranks.send(1, 0, kSize, 0), 1050 * kUs);
  EXPECT_EQ(ranks.send(2, 0, kSize, 0), 2050 * kUs);
  EXPECT_EQ(ranks.send(3, 0, kSize, 1500 * kUs), 3050 * kUs);
  EXPECT_EQ(ranks.send(0, 3, kSize, 0), 1050 * kUs);
}

TEST(LinkModel, RanksOfANodeShareItsPort) {
  Ranks ranks(parse_network("8Gbit,10us", "1Gbit,100us", 2), 6);
  EXPECT_EQ(ranks.model.node_of(2), 0);
  EXPECT_EQ(ranks.model.node_of(3), 1);
  EXPECT_EQ(ranks.send(0, 1, kSize, 0), 135 * kUs) << "inside a node";
  EXPECT_EQ(ranks.send(0, 3, kSize, 0), 1100 * kUs) << "not behind the message inside the node";
  EXPECT_EQ(ranks.send(1, 4, kSize, 0), 2100 * kUs) << "behind rank 0's";
  EXPECT_EQ(ranks.send(5, 2, kSize, 0), 1100 * kUs) << "the other way round";
}

TEST(LinkModel, APairMayHaveALinkOfItsOwn) {
  Ranks ranks(parse_network("1Gbit,50us;1>2=100Mbit,1ms"), 3);
  EXPECT_EQ(ranks.send(1, 2, kSize, 0), 11'000 * kUs);
  EXPECT_EQ(ranks.send(2, 1, kSize, 0), 1050 * kUs);
  EXPECT_EQ(ranks.send(0, 1, kSize, 2000 * kUs), 3050 * kUs);
  EXPECT_EQ(ranks.send(1, 0, kSize, 0), 11'050 * kUs) << "the port of rank 1 is busy with the slow message";
}

TEST(LinkModel, JitterRepeatsAndNeverOvertakes) {
  NetworkSpec network = parse_network("unlimited,1ms,jitter 100us");
  const auto firsts = [](const NetworkSpec& n) {
    Ranks ranks(n, 2);
    std::vector<int64_t> out;
    for (int i = 0; i < 200; ++i) out.push_back(ranks.depart(0, 1, kSize, 0).first_ns);
    return out;
  };
  const auto some = firsts(network);
  EXPECT_TRUE(std::is_sorted(some.begin(), some.end()));
  EXPECT_GE(some.front(), 1000 * kUs);
  EXPECT_LT(some.back(), 1100 * kUs);
  EXPECT_GT(some.back(), 1080 * kUs) << "the largest of 200";
  EXPECT_EQ(some, firsts(network));
  network.seed = 1;
  EXPECT_NE(some, firsts(network));
}

// A ring pass run through the model, message by message, takes the time of its closed form.
TEST(LinkModel, RingPassIsTheClosedForm) {
  for (const int n : {2, 3, 4, 7}) {
    for (const int segments : {1, 2, 5, 40}) {
      for (const char* link : {"1Gbit,50us", "1Gbit,3ms", "unlimited,1ms", "10Mbit"}) {
        const NetworkSpec network = parse_network(link);
        Ranks ranks(network, n);
        const int steps = 2 * (n - 1);
        std::vector<std::vector<int64_t>> here(static_cast<size_t>(n), std::vector<int64_t>(static_cast<size_t>(segments), 0));
        for (int step = 0; step < steps; ++step) {
          auto next = here;
          for (int r = 0; r < n; ++r) {
            for (int j = 0; j < segments; ++j) {
              const auto to = static_cast<size_t>((r + 1) % n), at = static_cast<size_t>(j);
              next[to][at] = ranks.send(r, (r + 1) % n, kSize, here[static_cast<size_t>(r)][at]);
            }
          }
          here = next;
        }
        const double want = comm::ring_pass_s(network.inside, steps, static_cast<double>(kSize) * segments, static_cast<double>(kSize));
        for (const auto& rank : here)
          EXPECT_NEAR(static_cast<double>(rank.back()) * 1e-9, want, 1e-8) << n << " " << segments << " " << link;
      }
    }
  }
  EXPECT_EQ(comm::ring_pass_s({}, 0, 100, 10), 0);
}

TEST(LinkText, Forms) {
  const auto link = [](const char* text) { return parse_network(text).inside; };
  EXPECT_EQ(link("1Gbit,50us"), (LinkSpec{125e6, 50e-6, 0}));
  EXPECT_EQ(link(" 200 MB/s , 1.5 ms , jitter 20us "), (LinkSpec{200e6, 1.5e-3, 20e-6}));
  EXPECT_EQ(link("1GB/s"), (LinkSpec{1e9, 0, 0}));
  EXPECT_EQ(link("8Kbit,2s"), (LinkSpec{1000, 2, 0}));
  EXPECT_EQ(link("unlimited,100ns"), (LinkSpec{.latency_s = 100e-9}));
  EXPECT_EQ(link("unlimited"), LinkSpec());
  const NetworkSpec network = parse_network("1Gbit,50us;1>2=100Mbit,1ms; 0>3 = unlimited", "10Gbit,2us", 2);
  EXPECT_EQ(network.nodes, 2);
  EXPECT_EQ(network.between, (LinkSpec{1.25e9, 2e-6, 0}));
  ASSERT_EQ(network.exceptions.size(), 2u);
  EXPECT_EQ(network.exceptions[0], (NetworkSpec::Exception{1, 2, {12.5e6, 1e-3, 0}}));
  EXPECT_EQ(network.exceptions[1], (NetworkSpec::Exception{0, 3, {}}));
  EXPECT_EQ(parse_network("1Gbit", "", 2).between, link("1Gbit"));
  EXPECT_EQ(parse_network("", "1Gbit", 2).inside, LinkSpec());
  for (const char* text : {"1Gbit,50us,jitter 5us", "unlimited", "unlimited,2ms", "2.5Gbit", "64Kbit,1s", "unlimited,0ns,jitter 3us"}) {
    EXPECT_EQ(link(text).str(), text);
  }
}

TEST(LinkText, ErrorsNameTheValueAndTheForm) {
  const auto error = [](std::string_view link, std::string_view between = {}, int64_t nodes = 1) {
    try {
      parse_network(link, between, nodes);
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const std::pair<const char*, const char*> cases[] = {
      {"1Gbps,50us", "'1Gbps' is no rate"},     {"Gbit", "'Gbit' is no rate"},          {",50us", "'' is no rate"},
      {"-1Gbit", "'-1Gbit' is no rate"},        {"nanGbit", "'nanGbit' is no rate"},    {"0Gbit", "below 1 byte/s"},
      {"1Gbit,50", "'50' is no latency"},       {"1Gbit,-1us", "is no latency"},        {"1Gbit,50us,5us", "'5us' is no jitter"},
      {"1Gbit,50us,jitter", "'' is no jitter"}, {"1Gbit,1us,jitter 1us,x", "too much"}, {"1Gbit,1e300s", "too long"},
      {"1Gbit;1-2=1Gbit", "is no FROM>TO"},     {"1Gbit;1>x=1Gbit", "'x' is no rank"},  {"1Gbit;1>1=1Gbit", "no link to itself"},
      {"1Gbit;1>2=fast", "'fast' is no rate"},  {"1Gbit;2=1>1Gbit", "is no FROM>TO"},
  };
  for (const auto& [text, what] : cases) {
    EXPECT_THAT(error(text), AllOf(StartsWith(fmt::format("link is '{}'", text)), HasSubstr(what), HasSubstr("such as 1Gbit,50us")))
        << text;
  }
  EXPECT_THAT(error("1Gbit", "slow", 2), StartsWith("inter_node_link is 'slow': 'slow' is no rate"));
  EXPECT_THAT(error("1Gbit", "1Gbit;1>2=1Gbit", 2), StartsWith("inter_node_link is"));
  EXPECT_THAT(error("1Gbit", "1Gbit"), StartsWith("inter_node_link is '1Gbit', but there is one node"));
  EXPECT_THAT(error("", "", 2), StartsWith("nodes is 2, but no link"));
  EXPECT_THAT(error("1Gbit", "", 0), StartsWith("nodes is 0"));
}

TEST(LinkModel, RefusesRanksThatDoNotFit) {
  EXPECT_THROW(LinkModel(parse_network("1Gbit", "", 2), 3), ConfigError);
  EXPECT_THROW(LinkModel(parse_network("1Gbit;1>3=1Gbit"), 3), ConfigError);
  EXPECT_NO_THROW(LinkModel(parse_network("1Gbit;1>3=1Gbit", "", 2), 4));
}

}  // namespace
}  // namespace rz
