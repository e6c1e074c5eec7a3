// Who may include whom, checked over every #include "..." of the tree; and no source file grows beyond reading.
//
// The rules are the table kLayers: a folder and the folders it sees. A new folder needs a line there, on purpose. Made-up
// trees show that each rule can fail.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace rz {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kMaxLines = 800;

struct Layer {
  std::string folder;
  std::set<std::string> sees;  // besides itself; "*" = everything
};

// The longest folder that a path starts with is its layer.
const std::vector<Layer> kLayers = {
    {"runtime/core", {}},
    {"runtime/kernels", {"runtime/core"}},
    {"runtime/kernels/cuda", {"runtime/core", "runtime/kernels"}},
    {"runtime/autograd", {"runtime/core", "runtime/kernels"}},
    {"runtime/ops", {"runtime/core", "runtime/kernels", "runtime/autograd"}},
    {"runtime/nn", {"runtime/core", "runtime/kernels", "runtime/autograd", "runtime/ops"}},
    {"comm", {"runtime/core", "runtime/kernels"}},
    {"models", {"runtime/core", "runtime/kernels", "runtime/autograd", "runtime/ops", "runtime/nn"}},
    {"models/data", {"runtime/core"}},
    {"optim", {"runtime/core", "runtime/kernels", "runtime/autograd", "runtime/ops", "runtime/nn", "comm"}},
    {"optim/checkpoint", {"runtime/core", "comm", "proto"}},
    {"proto", {}},
    {"tools", {"*"}},
    {"examples", {"*"}},
    {"bench", {"*"}},
    {"tests", {"*"}},
};

const Layer* layer_of(const std::string& path) {
  const Layer* best = nullptr;
  for (const Layer& layer : kLayers) {
    if (path.starts_with(layer.folder + "/") && (best == nullptr || layer.folder.size() > best->folder.size())) best = &layer;
  }
  return best;
}

struct Include {
  std::string target;
  bool quoted = false;
};
struct Source {
  std::vector<Include> includes;
  int64_t lines = 0;
};
using Tree = std::map<std::string, Source>;

Source parse_source(std::istream& in) {
  static const std::regex pattern("^\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"].*");
  Source source;
  std::string line;
  std::smatch match;
  while (std::getline(in, line)) {
    ++source.lines;
    if (line.size() < 500 && std::regex_match(line, match, pattern)) source.includes.push_back({match.str(2), match.str(1) == "\""});
  }
  return source;
}

Tree read_tree(const fs::path& root) {
  static const std::set<std::string> kEndings = {".h", ".cpp", ".cu", ".cuh"};
  Tree tree;
  for (const char* top : {"runtime", "comm", "optim", "models", "proto", "tools", "examples", "bench", "tests"}) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !kEndings.contains(entry.path().extension().string())) continue;
      std::ifstream in(entry.path());
      tree[fs::relative(entry.path(), root).generic_string()] = parse_source(in);
    }
  }
  return tree;
}

bool is_generated(const std::string& target) { return target.ends_with(".pb.h"); }

// Headers of the CUDA toolkit and its libraries.
bool is_cuda(const std::string& target) {
  return target.starts_with("cuda") || target.starts_with("cudnn") || target.starts_with("cublas") || target.starts_with("curand") ||
         target.starts_with("nccl") || target.ends_with(".cuh");
}
bool may_see_cuda(const std::string& path) {
  return path.starts_with("runtime/kernels/cuda/") || path.starts_with("comm/nccl_") || path.starts_with("tests/cuda/");
}

// Every breach as "from includes target: why".
std::vector<std::string> breaches(const Tree& tree) {
  std::vector<std::string> out;
  for (const auto& [path, source] : tree) {
    const auto complain = [&, &path = path](const std::string& target, const std::string& why) {
      out.push_back(path + " includes " + target + ": " + why);
    };
    const Layer* from = layer_of(path);
    if (from == nullptr) {
      out.push_back(path + ": its folder is in no layer");
      continue;
    }
    for (const Include& include : source.includes) {
      const std::string& target = include.target;
      if (is_cuda(target) && !may_see_cuda(path)) complain(target, "CUDA headers have their places");
      if (!include.quoted) continue;
      if (!is_generated(target) && !tree.contains(target)) {
        complain(target, "no such file from the root of the tree");
        continue;
      }
      const Layer* to = layer_of(target);
      if (to == nullptr) {
        complain(target, "it is in no layer");
      } else if (to != from && !from->sees.contains(to->folder) && !from->sees.contains("*")) {
        complain(target, from->folder + " does not see " + to->folder);
      } else if (to->folder == "tests" && from->folder != "tests" && from->folder != "bench") {
        complain(target, "only tests and benchmarks see tests");
      }
    }
  }
  return out;
}

// A chain of files that includes its own start, or nothing.
std::optional<std::string> find_cycle(const Tree& tree) {
  enum class Mark { open, done };
  std::map<std::string, Mark> marks;
  for (const auto& [start, unused] : tree) {
    if (marks.contains(start)) continue;
    // Depth first without recursion: a file and the next of its includes to follow.
    std::vector<std::pair<std::string, size_t>> chain = {{start, 0}};
    marks[start] = Mark::open;
    while (!chain.empty()) {
      const std::string path = chain.back().first;
      const auto& includes = tree.at(path).includes;
      const size_t next = chain.back().second++;
      if (next == includes.size()) {
        marks[path] = Mark::done;
        chain.pop_back();
        continue;
      }
      const Include& include = includes[next];
      if (!include.quoted || !tree.contains(include.target)) continue;
      const auto mark = marks.find(include.target);
      if (mark == marks.end()) {
        marks[include.target] = Mark::open;
        chain.emplace_back(include.target, 0);
      } else if (mark->second == Mark::open) {
        std::string cycle;
        for (const auto& link : chain) cycle += link.first + " -> ";
        return cycle + include.target;
      }
    }
  }
  return std::nullopt;
}

Tree made_up(const std::map<std::string, std::string>& files) {
  Tree tree;
  for (const auto& [path, text] : files) {
    std::istringstream in(text);
    tree[path] = parse_source(in);
  }
  return tree;
}

// Reading the tree takes a moment; all tests share it.
const Tree& real_tree() {
  static const Tree tree = read_tree(RZ_SOURCE_DIR);
  return tree;
}

TEST(Layering, TheTreeWasRead) {
  EXPECT_GT(real_tree().size(), 50u);
  EXPECT_TRUE(real_tree().contains("runtime/core/tensor.h"));
  EXPECT_TRUE(real_tree().contains("tests/tools/layering_test.cpp"));
}

TEST(Layering, EveryIncludeIsAllowed) { EXPECT_THAT(breaches(real_tree()), IsEmpty()); }

TEST(Layering, NoCycles) { EXPECT_EQ(find_cycle(real_tree()).value_or(""), ""); }

TEST(Layering, NoFileIsTooLong) {
  for (const auto& [path, source] : real_tree()) EXPECT_LE(source.lines, kMaxLines) << path;
}

// A tree of two files and this one edge.
void expect_refused(const std::string& from, const std::string& to) {
  EXPECT_THAT(breaches(made_up({{from, "#include \"" + to + "\"\n"}, {to, ""}})), Contains(HasSubstr(from + " includes " + to)))
      << from << " -> " << to;
}
void expect_accepted(const std::string& from, const std::string& to) {
  EXPECT_THAT(breaches(made_up({{from, "#include \"" + to + "\"\n"}, {to, ""}})), IsEmpty()) << from << " -> " << to;
}

TEST(LayeringControl, ForbiddenEdgesAreSeen) {
  // Upwards inside the runtime.
  const std::vector<std::string> order = {"runtime/core/a.h", "runtime/kernels/a.h", "runtime/autograd/a.h",
                                          "runtime/ops/a.h",  "runtime/nn/a.h",      "models/gpt/a.h"};
  for (size_t low = 0; low < order.size(); ++low) {
    for (size_t high = low + 1; high < order.size(); ++high) {
      expect_refused(order[low], order[high]);
      expect_accepted(order[high], order[low]);
    }
  }
  for (const char* to : {"runtime/autograd/a.h", "runtime/ops/a.h", "runtime/nn/a.h", "models/gpt/a.h", "optim/a.h", "tools/a.h"})
    expect_refused("comm/a.h", to);
  for (const char* to : {"comm/a.h", "optim/a.h", "optim/shard/a.h", "tools/a.h"}) {
    expect_refused("models/gpt/a.h", to);
    expect_refused("runtime/nn/a.h", to);
    expect_refused("models/data/a.h", to);
  }
  for (const char* to : {"runtime/kernels/a.h", "runtime/nn/a.h", "models/gpt/a.h"}) expect_refused("models/data/a.h", to);
  expect_refused("optim/a.h", "models/gpt/a.h");
  expect_refused("optim/a.h", "tools/a.h");
  expect_refused("tools/a.cpp", "tests/support/a.h");
  EXPECT_THAT(breaches(made_up({{"extra/a.h", ""}})), Contains(HasSubstr("no layer")));
  expect_accepted("optim/shard/a.h", "comm/a.h");
  expect_accepted("tests/tools/a.cpp", "tools/a.h");
}

TEST(LayeringControl, ProtobufStaysAtTheEdges) {
  const std::string text = "#include \"proto/job.pb.h\"\n";
  for (const char* from :
       {"runtime/core/a.h", "runtime/nn/a.h", "comm/a.cpp", "models/gpt/a.h", "models/data/a.cpp", "optim/a.h", "optim/shard/a.cpp"}) {
    EXPECT_THAT(breaches(made_up({{from, text}})), Contains(HasSubstr("proto"))) << from;
  }
  for (const char* from : {"optim/checkpoint/a.cpp", "tools/a.h", "examples/a.cpp", "tests/optim/a.cpp"}) {
    EXPECT_THAT(breaches(made_up({{from, text}})), IsEmpty()) << from;
  }
}

TEST(LayeringControl, CudaHeadersHaveTheirPlaces) {
  for (const char* header : {"<cuda_runtime.h>", "<cublas_v2.h>", "<nccl.h>", "<cudnn.h>"}) {
    const std::string text = std::string("  #  include ") + header + "  // why\n";
    for (const char* from : {"runtime/core/a.h", "runtime/kernels/a.h", "runtime/kernels/cpu/a.cpp", "comm/a.cpp", "tools/a.cpp"}) {
      EXPECT_THAT(breaches(made_up({{from, text}})), Contains(HasSubstr("CUDA"))) << from;
    }
    for (const char* from : {"runtime/kernels/cuda/a.cu", "comm/nccl_communicator.cpp"})
      EXPECT_THAT(breaches(made_up({{from, text}})), IsEmpty()) << from;
  }
}

TEST(LayeringControl, IncludesStartAtTheRoot) {
  EXPECT_THAT(breaches(made_up({{"comm/a.cpp", "#include \"a.h\"\n"}, {"comm/a.h", ""}})), Contains(HasSubstr("no such file")));
}

TEST(LayeringControl, CyclesAreFound) {
  const auto include = [](const std::string& path) { return "#include \"" + path + "\"\n"; };
  EXPECT_EQ(find_cycle(made_up({{"comm/a.h", include("comm/b.h")}, {"comm/b.h", include("comm/c.h")}, {"comm/c.h", include("comm/a.h")}})),
            "comm/a.h -> comm/b.h -> comm/c.h -> comm/a.h");
  EXPECT_EQ(find_cycle(made_up({{"comm/a.h", include("comm/a.h")}})), "comm/a.h -> comm/a.h");
  // A diamond is none.
  EXPECT_EQ(find_cycle(made_up({{"comm/a.h", include("comm/b.h") + include("comm/c.h")},
                                {"comm/b.h", include("comm/d.h")},
                                {"comm/c.h", include("comm/d.h")},
                                {"comm/d.h", ""}})),
            std::nullopt);
}

}  // namespace
}  // namespace rz
