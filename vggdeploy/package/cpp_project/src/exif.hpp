// EXIF orientation (tag 274): what turns the stored pixels upright.
#pragma once

#include <cstddef>
#include <cstdint>

#include "image.hpp"

// The orientation, 1 to 8, in TIFF data as it stands in a JPEG's APP1 (behind "Exif\0\0") or a PNG's eXIf. 1 when it says none.
int exif_orientation(const std::uint8_t* data, std::size_t size);

Image upright(Image image, int orientation);
