// What the program's output goes to: a terminal or not, how wide, whether it shows UTF-8.
//
// Under Open MPI every rank's standard output is a pseudo-terminal that mpirun reads, whatever mpirun's own output is; what
// counts is the latter. Thread-safe.
#pragma once

namespace rz::tools {

struct TerminalStyle {
  bool is_terminal = false;
  bool utf8 = false;
  int columns = 80;
};

// The style of standard output.
TerminalStyle detect_terminal();

}  // namespace rz::tools
