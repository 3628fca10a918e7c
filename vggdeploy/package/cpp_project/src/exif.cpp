#include "exif.hpp"

#include <algorithm>
#include <cctype>
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

// 0 where the tag is not there; 1 where it, or the whole, cannot be understood.
int exif_orientation(const std::uint8_t* data, std::size_t size) {
    if (!size) return 0;
    const bool little = size > 8 && data[0] == 'I' && data[1] == 'I';
    const bool big = size > 8 && data[0] == 'M' && data[1] == 'M';
    const Tiff tiff(data, size);
    if ((!little && !big) || tiff.u16(2) != 42) return 1;
    const std::size_t directory = tiff.u32(4);
    const std::uint32_t entries = tiff.u16(directory);
    for (std::uint32_t index = 0; index < entries; ++index) {
        const std::size_t entry = directory + 2 + 12 * static_cast<std::size_t>(index);
        if (entry + 12 > size) break;
        if (tiff.u16(entry) != kOrientation) continue;
        if (tiff.u32(entry + 4) != 1) return 1;
        const std::uint32_t type = tiff.u16(entry + 2);
        const std::uint32_t value = type == kShort ? tiff.u16(entry + 8) : type == kLong ? tiff.u32(entry + 8) : 1;
        return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 0;
}

// As Pillow reads it: the digit behind the first attribute or element of that name.
int xmp_orientation(std::string_view xmp) {
    constexpr std::string_view name = "tiff:Orientation";
    for (std::size_t at = xmp.find(name); at != std::string_view::npos; at = xmp.find(name, at + 1)) {
        std::string_view rest = xmp.substr(at + name.size());
        if (rest.substr(0, 2) == "=\"")
            rest.remove_prefix(2);
        else if (rest.substr(0, 1) == ">")
            rest.remove_prefix(1);
        else
            continue;
        if (rest.empty() || rest[0] < '0' || rest[0] > '9') continue;
        return rest[0] >= '1' && rest[0] <= '8' ? rest[0] - '0' : 1;
    }
    return 1;
}

int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const int low = std::tolower(static_cast<unsigned char>(c));
    return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

}  // namespace

int orientation_of(const Metadata& metadata) {
    const int found = exif_orientation(metadata.exif.data(), metadata.exif.size());
    return found ? found : xmp_orientation(metadata.xmp);
}

std::vector<std::uint8_t> from_raw_profile(std::string_view text) {
    for (int line = 0; line < 3; ++line) {
        const std::size_t end = text.find('\n');
        if (end == std::string_view::npos) return {};
        text.remove_prefix(end + 1);
    }
    std::vector<std::uint8_t> bytes;
    for (std::size_t at = 0; at < text.size();) {
        if (std::isspace(static_cast<unsigned char>(text[at]))) {
            ++at;
            continue;
        }
        const int high = digit(text[at]), low = at + 1 < text.size() ? digit(text[at + 1]) : -1;
        if (high < 0 || low < 0) return {'?'};  // there is EXIF, and nobody can read it
        bytes.push_back(static_cast<std::uint8_t>(high << 4 | low));
        at += 2;
    }
    constexpr std::string_view head("Exif\0\0", 6);
    if (bytes.size() >= head.size() && std::equal(head.begin(), head.end(), bytes.begin()))
        bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(head.size()));
    return bytes;
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
