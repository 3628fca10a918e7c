// Image files: JPEG (grey and colour), PNG, and binary PGM and PPM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "image.hpp"

// Larger images are refused before they are decoded: it is Pillow's own limit, 256 MiB of RGB.
inline constexpr std::int64_t kMaxPixels = 89'478'485;

std::vector<std::uint8_t> read_file(const std::string& path);

// The image, turned upright as its EXIF data says. Throws Error.
Image decode(const std::vector<std::uint8_t>& file);
