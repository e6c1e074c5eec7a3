// Where images come from: Fashion-MNIST of a Debian package, folders of PNG files, NumPy arrays.
//
// All loaders check what they read before they trust it: every problem is a ConfigError of one line naming file and value.
// Not COLLECTIVE: each rank may load for itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/data/image_dataset.h"

namespace rz::models {

// Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 60,000 training and 10,000 test images of 28 x 28, ten classes.
inline constexpr int64_t kFashionTrainImages = 60000;
inline constexpr int64_t kFashionTestImages = 10000;
inline constexpr ImageSize kFashionSize{28, 28, 1};
const std::vector<std::string>& fashion_class_names();

// {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz in `folder`, where the package dataset-fashion-mnist puts them; of any size and number.
ImageDataset load_fashion_mnist(const std::string& folder = "/usr/share/datasets/fashion-mnist");

// FOLDER/CLASS/*.png (one class per subfolder, in alphabetical order) or FOLDER/*.png (one class): 8 bits a channel, gray or RGB, all of
// one size. Within each class every 1/validation_fraction-th file, in alphabetical order, is held out.
ImageDataset load_png_folder(const std::string& folder, double validation_fraction);

// A NumPy array of u8, [N, H, W] or [N, H, W, C], and, where `labels_path` is not empty, one of integers [N] with its labels. The last
// part is held out.
ImageDataset load_npy(const std::string& images_path, const std::string& labels_path, double validation_fraction);

// The contents of a gzip file of one member, at most `most_bytes` of them.
std::vector<uint8_t> read_gzip(const std::string& path, int64_t most_bytes);

}  // namespace rz::models
