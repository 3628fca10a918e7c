#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace {

struct Kernel {
    double support;  // how far it reaches, in pixels of the smaller image
    double (*weight)(double);
};

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }

// Keys 1981, with a = -1/2.
double cubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= std::numbers::pi;
    return std::sin(x) / x;
}

double lanczos3(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

Kernel kernel_of(const std::string& filter) {
    if (filter == "bilinear") return {1.0, triangle};
    if (filter == "bicubic") return {2.0, cubic};
    if (filter == "lanczos") return {3.0, lanczos3};
    throw Error("unknown filter: " + filter);
}

// The pixels that make one new pixel, and their weights as fixed-point numbers of 22 bits.
struct Taps {
    int first = 0;
    std::vector<int> weights;
};

constexpr int kBits = 22;  // 32, less 8 of the pixel and 2 for overshoot

std::vector<Taps> taps(int from, int to, const Kernel& kernel) {
    const double scale = static_cast<double>(from) / to;
    const double stretch = std::max(scale, 1.0);
    const double support = kernel.support * stretch;
    std::vector<Taps> found(static_cast<std::size_t>(to));
    for (int index = 0; index < to; ++index) {
        const double center = (index + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(center - support + 0.5));
        const int last = std::min(from, static_cast<int>(center + support + 0.5));
        std::vector<double> weights;
        double sum = 0.0;
        for (int x = first; x < last; ++x) {
            weights.push_back(kernel.weight((x - center + 0.5) * (1.0 / stretch)));
            sum += weights.back();
        }
        Taps& tap = found[static_cast<std::size_t>(index)];
        tap.first = first;
        for (double weight : weights) {
            if (sum != 0.0) weight /= sum;
            tap.weights.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kBits)));
        }
    }
    return found;
}

std::uint8_t rounded(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

// One direction: `step` bytes lie between neighbours along it.
void convolve(const std::uint8_t* from, std::size_t step, const Taps& tap, int channels, std::uint8_t* to) {
    for (int c = 0; c < channels; ++c) {
        int sum = 1 << (kBits - 1);
        const std::uint8_t* pixel = from + static_cast<std::size_t>(tap.first) * step + c;
        for (int weight : tap.weights) {
            sum += *pixel * weight;
            pixel += step;
        }
        to[c] = rounded(sum);
    }
}

Image nearest(const Image& image, int width, int height) {
    // Positions are added up, not multiplied: that is where Pillow's last bit comes from.
    auto places = [](int from, int to) {
        std::vector<int> found;
        const double scale = static_cast<double>(from) / to;
        double place = scale * 0.5;
        for (int index = 0; index < to; ++index, place += scale) found.push_back(std::min(static_cast<int>(place), from - 1));
        return found;
    };
    const auto columns = places(image.width, width), rows = places(image.height, height);
    Image made(width, height, image.channels);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            std::copy_n(image.at(columns[static_cast<std::size_t>(x)], rows[static_cast<std::size_t>(y)]), image.channels,
                        made.at(x, y));
    return made;
}

Image resize_width(const Image& image, int width, const Kernel& kernel) {
    if (image.width == width) return image;
    Image made(width, image.height, image.channels);
    const auto columns = taps(image.width, width, kernel);
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < width; ++x)
            convolve(image.at(0, y), static_cast<std::size_t>(image.channels), columns[static_cast<std::size_t>(x)],
                     image.channels, made.at(x, y));
    return made;
}

Image resize_height(const Image& image, int height, const Kernel& kernel) {
    if (image.height == height) return image;
    Image made(image.width, height, image.channels);
    const auto rows = taps(image.height, height, kernel);
    const std::size_t stride = static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.channels);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < image.width; ++x)
            convolve(image.at(x, 0), stride, rows[static_cast<std::size_t>(y)], image.channels, made.at(x, y));
    return made;
}

}  // namespace

Image resize(const Image& image, int width, int height, const std::string& filter, bool tall_first) {
    if (image.width == width && image.height == height) return image;
    if (filter == "nearest") return nearest(image, width, height);
    const Kernel kernel = kernel_of(filter);
    // Each pass rounds to 8 bits, so their order shows in the last one.
    const bool tall = height < image.height && image.height - height > 2 * (image.width - width);
    if (tall_first && tall) return resize_width(resize_height(image, height, kernel), width, kernel);
    return resize_height(resize_width(image, width, kernel), height, kernel);
}
