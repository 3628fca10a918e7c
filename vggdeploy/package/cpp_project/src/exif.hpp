// EXIF orientation (tag 274), or XMP's: what turns the stored pixels upright.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "image.hpp"

// What a file says of its orientation: EXIF as it stands in a JPEG's APP1 (behind "Exif\0\0"), in a PNG's eXIf or, in
// hexadecimal, in a PNG's text of the name "Raw profile type exif"; and XMP, which counts where EXIF has no such tag.
struct Metadata {
    std::vector<std::uint8_t> exif;
    std::string_view xmp;
};

// The orientation, 1 to 8. 1 when there is none, or one that cannot be understood.
int orientation_of(const Metadata& metadata);

// The bytes of a text "Raw profile type exif": three lines of head, then pairs of hexadecimal digits. Empty when it is none.
std::vector<std::uint8_t> from_raw_profile(std::string_view text);

Image upright(Image image, int orientation);
