#include "prepare.hpp"

#include <algorithm>
#include <cmath>

#include "decode.hpp"
#include "resize.hpp"

namespace {

// Pillow's alpha_composite over opaque white, in its own integers.
std::uint8_t over_white(std::uint32_t value, std::uint32_t alpha) {
    const std::uint32_t front = alpha * 128, back = 255 * 128 - front;
    const std::uint32_t sum = value * front + 255 * back + (0x80 << 7);
    return static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> 7);
}

Image without_alpha(const Image& image) {
    if (image.channels == 1 || image.channels == 3) return image;
    const int colours = image.channels - 1;
    Image made(image.width, image.height, colours);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < image.width; ++x) {
            const std::uint8_t* from = image.at(x, y);
            for (int c = 0; c < colours; ++c) made.at(x, y)[c] = over_white(from[c], from[colours]);
        }
    return made;
}

// ITU-R 601-2 luma in 16 bits of fraction.
std::uint8_t luma(const std::uint8_t* rgb) {
    return static_cast<std::uint8_t>((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16);
}

Image with_channels(const Image& image, int channels) {
    if (image.channels == channels) return image;
    Image made(image.width, image.height, channels);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < image.width; ++x) {
            if (channels == 1)
                *made.at(x, y) = luma(image.at(x, y));
            else
                std::fill_n(made.at(x, y), channels, *image.at(x, y));
        }
    return made;
}

}  // namespace

Image prepare(const Image& source, const Model& model) {
    const Image image = with_channels(without_alpha(source), model.channels);
    const double longer = std::max(image.width, image.height), shorter = std::min(image.width, image.height);
    const double other = std::floor(model.resize * longer / shorter);
    if (other * model.resize > static_cast<double>(kMaxPixels)) throw Error("it is too elongated: cut it nearer to a square");
    const bool upright = image.width <= image.height;
    const int width = upright ? model.resize : static_cast<int>(other), height = upright ? static_cast<int>(other) : model.resize;
    const Image resized = resize(image, width, height, model.interpolation, model.tall_first);
    // nearbyint rounds a half to even, as Python's round() does.
    const int left = static_cast<int>(std::nearbyint((width - model.crop) / 2.0));
    const int top = static_cast<int>(std::nearbyint((height - model.crop) / 2.0));
    Image made(model.crop, model.crop, model.channels);
    for (int y = 0; y < model.crop; ++y)
        std::copy_n(resized.at(left, top + y), static_cast<std::size_t>(model.crop) * static_cast<std::size_t>(model.channels),
                    made.at(0, y));
    return made;
}
