// A picture as a list of rectangles, lines and texts, written as SVG or, by a small rasterizer with a built-in font, as PNG.
// Coordinates in points from the top left; y grows downwards. Text is ASCII.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rz::tools {

struct Color {
  uint8_t red = 0, green = 0, blue = 0;
};

// "#1f4e8c"
std::string hex(Color color);
// For element texts and quoted attributes of XML and HTML.
std::string escaped_xml(const std::string& text);
// Distance of an axis' grid lines up to `most`, so that there are four to ten: 1, 2 or 5 times a power of ten.
double grid_step(double most);

enum class Anchor : uint8_t { start, middle, end };

class Drawing {
 public:
  Drawing(double width, double height) : width_(width), height_(height) {}

  void rectangle(double x, double y, double width, double height, Color color);
  // From a point to another, `thickness` wide.
  void line(double x1, double y1, double x2, double y2, double thickness, Color color);
  // `y` is the baseline; `size` the height of the letters' box. `turned`: read upwards.
  void text(double x, double y, double size, const std::string& text, Color color, Anchor anchor = Anchor::start, bool turned = false);

  std::string svg() const;
  // The file's bytes; two pixels a point.
  std::string png() const;

 private:
  struct Rectangle {
    double x, y, width, height;
    Color color;
  };
  struct Line {
    double x1, y1, x2, y2, thickness;
    Color color;
  };
  struct Text {
    double x, y, size;
    std::string text;
    Color color;
    Anchor anchor;
    bool turned;
  };
  // In the order of drawing: rectangles first, lines and texts above them.
  std::vector<Rectangle> rectangles_;
  std::vector<Line> lines_;
  std::vector<Text> texts_;
  double width_;
  double height_;
};

}  // namespace rz::tools
