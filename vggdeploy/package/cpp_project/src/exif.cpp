#include "exif.hpp"

#include <algorithm>
#include <utility>

namespace {

// Bytes of a TIFF, in its own byte order. What lies outside reads as 0.
class Tiff {
public:
    Tiff(const std::uint8_t* data, std::size_t size) : data_(data), size_(size), big_(size > 1 && data[0] == 'M') {}

    std::uint32_t u16(std::size_t at) const { return big_ ? byte(at) << 8 | byte(at + 1) : byte(at + 1) << 8 | byte(at); }
    std::uint32_t u32(std::size_t at) const {
        return big_ ? u16(at) << 16 | u16(at + 2) : u16(at + 2) << 16 | u16(at);
    }

private:
    std::uint32_t byte(std::size_t at) const { return at < size_ ? data_[at] : 0; }

    const std::uint8_t* data_;
    std::size_t size_;
    bool big_;
};

constexpr std::uint32_t kOrientation = 274, kShort = 3, kLong = 4;

}  // namespace

int exif_orientation(const std::uint8_t* data, std::size_t size) {
    const bool little = size > 8 && data[0] == 'I' && data[1] == 'I';
    const bool big = size > 8 && data[0] == 'M' && data[1] == 'M';
    const Tiff tiff(data, size);
    if ((!little && !big) || tiff.u16(2) != 42) return 1;
    const std::size_t directory = tiff.u32(4);
    const std::uint32_t entries = tiff.u16(directory);
    for (std::uint32_t index = 0; index < entries; ++index) {
        const std::size_t entry = directory + 2 + 12 * static_cast<std::size_t>(index);
        if (entry + 12 > size) break;
        if (tiff.u16(entry) != kOrientation || tiff.u32(entry + 4) != 1) continue;
        const std::uint32_t type = tiff.u16(entry + 2);
        const std::uint32_t value = type == kShort ? tiff.u16(entry + 8) : type == kLong ? tiff.u32(entry + 8) : 1;
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 1;
}

Image upright(Image image, int orientation) {
    if (orientation == 1) return image;
    const bool swapped = orientation >= 5;  // these exchange rows and columns
    Image turned(swapped ? image.height : image.width, swapped ? image.width : image.height, image.channels);
    const int right = image.width - 1, bottom = image.height - 1;
    for (int y = 0; y < turned.height; ++y) {
        for (int x = 0; x < turned.width; ++x) {
            std::pair<int, int> from;
            switch (orientation) {
                case 2: from = {right - x, y}; break;
                case 3: from = {right - x, bottom - y}; break;
                case 4: from = {x, bottom - y}; break;
                case 5: from = {y, x}; break;
                case 6: from = {y, bottom - x}; break;
                case 7: from = {right - y, bottom - x}; break;
                default: from = {right - y, x}; break;
            }
            std::copy_n(image.at(from.first, from.second), image.channels, turned.at(x, y));
        }
    }
    return turned;
}
