#include "tools/chart_drawing.h"

#include <fmt/format.h>
#include <png.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>

#include "runtime/core/error.h"
#include "tools/chart_font.h"

namespace rz::tools {

namespace {

constexpr double kPixelsPerPoint = 2;

class Image {
 public:
  Image(int width, int height) : width_(width), height_(height), pixels_(static_cast<size_t>(width) * static_cast<size_t>(height) * 3, 255) {}

  void fill(double x, double y, double width, double height, Color color) {
    const int right = std::min(width_, static_cast<int>(std::lround(x + width)));
    const int bottom = std::min(height_, static_cast<int>(std::lround(y + height)));
    for (int row = std::max(0, static_cast<int>(std::lround(y))); row < bottom; ++row)
      for (int column = std::max(0, static_cast<int>(std::lround(x))); column < right; ++column) {
        uint8_t* pixel = &pixels_[(static_cast<size_t>(row) * static_cast<size_t>(width_) + static_cast<size_t>(column)) * 3];
        pixel[0] = color.red, pixel[1] = color.green, pixel[2] = color.blue;
      }
  }

  // The pixels whose middle is within half the thickness of the line.
  void stroke(double x1, double y1, double x2, double y2, double thickness, Color color) {
    const double half = thickness / 2;
    const double dx = x2 - x1, dy = y2 - y1;
    const double length2 = dx * dx + dy * dy;
    for (int row = static_cast<int>(std::min(y1, y2) - half); row <= static_cast<int>(std::max(y1, y2) + half); ++row)
      for (int column = static_cast<int>(std::min(x1, x2) - half); column <= static_cast<int>(std::max(x1, x2) + half); ++column) {
        const double px = column + 0.5 - x1, py = row + 0.5 - y1;
        const double along = length2 > 0 ? std::clamp((px * dx + py * dy) / length2, 0.0, 1.0) : 0;
        if (std::hypot(px - along * dx, py - along * dy) <= half) fill(column, row, 1, 1, color);
      }
  }

  // `dot` pixels to a dot of the font; (x, y) is the left end of the baseline.
  void write(double x, double y, int dot, const std::string& text, Color color, bool turned) {
    constexpr int kAscent = 7;
    int at = 0;
    for (const char c : text) {
      for (int column = 0; column < kFontColumns; ++column)
        for (int row = 0; row < kFontRows; ++row) {
          if ((glyph(c)[static_cast<size_t>(column)] >> row & 1) == 0) continue;
          const double along = (at + column) * dot;
          const double up = (kAscent - row) * dot;
          if (turned) fill(x - up, y - along - dot, dot, dot, color);
          else fill(x + along, y - up, dot, dot, color);
        }
      at += kFontColumns + 1;
    }
  }

  std::string encode() const {
    std::string bytes;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
    RZ_CHECK(png != nullptr, "libpng cannot be started");
    png_infop info = png_create_info_struct(png);
    // libpng reports errors by a jump; nothing with a destructor lives between here and there.
    if (setjmp(png_jmpbuf(png)) != 0) {
      png_destroy_write_struct(&png, &info);
      throw Error("libpng cannot encode the picture");
    }
    png_set_write_fn(
        png, &bytes, [](png_structp p, png_bytep data, size_t n) { static_cast<std::string*>(png_get_io_ptr(p))->append(reinterpret_cast<char*>(data), n); },
        [](png_structp) {});
    png_set_IHDR(png, info, static_cast<png_uint_32>(width_), static_cast<png_uint_32>(height_), 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (int row = 0; row < height_; ++row) png_write_row(png, &pixels_[static_cast<size_t>(row) * static_cast<size_t>(width_) * 3]);
    png_write_end(png, nullptr);
    png_destroy_write_struct(&png, &info);
    return bytes;
  }

 private:
  int width_;
  int height_;
  std::vector<uint8_t> pixels_;
};

}  // namespace

std::string hex(Color color) { return fmt::format("#{:02x}{:02x}{:02x}", color.red, color.green, color.blue); }

std::string escaped_xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '&') out += "&amp;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

double grid_step(double most) {
  const double rough = most > 0 ? most / 5 : 1;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double f : {1.0, 2.0, 5.0})
    if (rough <= f * power) return f * power;
  return 10 * power;
}

void Drawing::rectangle(double x, double y, double width, double height, Color color) { rectangles_.push_back({x, y, width, height, color}); }

void Drawing::line(double x1, double y1, double x2, double y2, double thickness, Color color) { lines_.push_back({x1, y1, x2, y2, thickness, color}); }

void Drawing::text(double x, double y, double size, const std::string& text, Color color, Anchor anchor, bool turned) {
  texts_.push_back({x, y, size, text, color, anchor, turned});
}

std::string Drawing::svg() const {
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"Helvetica, Arial, sans-serif\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      width_, height_);
  for (const auto& r : rectangles_)
    out += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\"/>\n", r.x, r.y, r.width, r.height, hex(r.color));
  for (const auto& l : lines_)
    out += fmt::format("<line x1=\"{:.2f}\" y1=\"{:.2f}\" x2=\"{:.2f}\" y2=\"{:.2f}\" stroke-width=\"{:.2f}\" stroke-linecap=\"round\" stroke=\"{}\"/>\n", l.x1, l.y1, l.x2,
                       l.y2, l.thickness, hex(l.color));
  constexpr const char* kAnchors[] = {"start", "middle", "end"};
  for (const auto& t : texts_)
    out += fmt::format("<text x=\"{0:.2f}\" y=\"{1:.2f}\" font-size=\"{2:.1f}\" fill=\"{3}\" text-anchor=\"{4}\"{5}>{6}</text>\n", t.x, t.y, t.size,
                       hex(t.color), kAnchors[static_cast<size_t>(t.anchor)],
                       t.turned ? fmt::format(" transform=\"rotate(-90 {:.2f} {:.2f})\"", t.x, t.y) : "", escaped_xml(t.text));
  return out + "</svg>\n";
}

std::string Drawing::png() const {
  Image image(static_cast<int>(width_ * kPixelsPerPoint), static_cast<int>(height_ * kPixelsPerPoint));
  for (const auto& r : rectangles_)
    image.fill(r.x * kPixelsPerPoint, r.y * kPixelsPerPoint, r.width * kPixelsPerPoint, r.height * kPixelsPerPoint, r.color);
  for (const auto& l : lines_)
    image.stroke(l.x1 * kPixelsPerPoint, l.y1 * kPixelsPerPoint, l.x2 * kPixelsPerPoint, l.y2 * kPixelsPerPoint, l.thickness * kPixelsPerPoint, l.color);
  for (const auto& t : texts_) {
    // The font's box of 9 dots stands for the size; letters are as wide as an SVG's on average.
    const int dot = std::max(1, static_cast<int>(std::lround(t.size * kPixelsPerPoint / 10)));
    const double width = static_cast<double>(t.text.size()) * (kFontColumns + 1) * dot - dot;
    const double back = t.anchor == Anchor::start ? 0 : t.anchor == Anchor::middle ? width / 2 : width;
    const double x = t.x * kPixelsPerPoint - (t.turned ? 0 : back);
    const double y = t.y * kPixelsPerPoint + (t.turned ? back : 0);
    image.write(x, y, dot, t.text, t.color, t.turned);
  }
  return image.encode();
}

}  // namespace rz::tools
