#include "decode.hpp"

#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string_view>
#include <utility>

#include <jpeglib.h>
#include <png.h>

#include "exif.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;

void check_size(std::int64_t width, std::int64_t height) {
    if (width < 1 || height < 1) throw Error("it has no pixels");
    if (width > std::numeric_limits<int>::max() / 4 || height > kMaxPixels || width * height > kMaxPixels)
        throw Error("it has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, which is too many");
}

// ---- PNG ----------------------------------------------------------------------------------------------------------

struct PngReader {
    const Bytes& file;
    std::size_t at = 0;
    std::string problem;

    static void read(png_structp png, png_bytep out, std::size_t size) {
        auto& self = *static_cast<PngReader*>(png_get_io_ptr(png));
        if (size > self.file.size() - self.at) png_error(png, "it is cut short");
        std::memcpy(out, self.file.data() + self.at, size);
        self.at += size;
    }
    static void fail(png_structp png, png_const_charp text) {
        static_cast<PngReader*>(png_get_error_ptr(png))->problem = text;
        png_longjmp(png, 1);
    }
    static void ignore(png_structp, png_const_charp) {}
};

// 16 bits of grey become 8 by their range (257 v goes back to v), as vggdeploy has it; of 16-bit colour Pillow keeps the
// high byte.
std::uint8_t scaled(std::uint32_t value) { return static_cast<std::uint8_t>((value + 128) / 257); }

// All that has a destructor lives in `decode_png`: libpng leaves this function with a longjmp, which runs none.
bool read_png(png_structp png, png_infop info, Image& image, Bytes& wide, std::vector<png_bytep>& rows) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_read_info(png, info);
    const auto width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    check_size(width, height);
    const int depth = png_get_bit_depth(png, info);
    const bool grey16 = depth == 16 && png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY;
    if (grey16 && png_get_valid(png, info, PNG_INFO_tRNS)) png_error(png, "16-bit grey with a transparent colour");
    png_set_expand(png);  // palettes to RGB, 1 to 4 bits of grey to 8, a transparent colour to alpha
    if (depth == 16 && !grey16) png_set_strip_16(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    const int channels = png_get_channels(png, info);
    image = Image(static_cast<int>(width), static_cast<int>(height), channels);
    if (grey16) wide.resize(image.pixels.size() * 2);
    const std::size_t stride = static_cast<std::size_t>(width) * static_cast<std::size_t>(channels) * (grey16 ? 2 : 1);
    rows.resize(height);
    for (std::size_t y = 0; y < height; ++y) rows[y] = (grey16 ? wide : image.pixels).data() + y * stride;
    png_read_image(png, rows.data());
    png_read_end(png, info);
    for (std::size_t i = 0; grey16 && i < image.pixels.size(); ++i)
        image.pixels[i] = scaled(static_cast<std::uint32_t>(wide[2 * i]) << 8 | wide[2 * i + 1]);
    return true;
}

// Of several texts of one name the last one counts, and an eXIf chunk more than a text.
int png_orientation(png_structp png, png_infop info) {
    Metadata metadata;
    png_textp texts = nullptr;
    int count = 0;
    png_get_text(png, info, &texts, &count);
    for (int i = 0; i < count; ++i) {
        const bool international = texts[i].compression > 0;
        const std::string_view text(texts[i].text, international ? texts[i].itxt_length : texts[i].text_length);
        const std::string_view key(texts[i].key);
        if (key == "XML:com.adobe.xmp") metadata.xmp = text;
        if (key == "Raw profile type exif") metadata.exif = from_raw_profile(text);
    }
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(png, info, &size, &exif)) metadata.exif.assign(exif, exif + size);
    return orientation_of(metadata);
}

Image decode_png(const Bytes& file) {
    PngReader reader{file, 0, {}};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, PngReader::fail, PngReader::ignore);
    png_infop info = png ? png_create_info_struct(png) : nullptr;
    if (!info) {
        png_destroy_read_struct(&png, nullptr, nullptr);
        throw Error("libpng does not start");
    }
    png_set_read_fn(png, &reader, PngReader::read);
    png_set_user_limits(png, 1'000'000, 1'000'000);
    Image image;
    Bytes wide;
    std::vector<png_bytep> rows;
    int orientation = 1;
    bool good = false;
    try {
        good = read_png(png, info, image, wide, rows);
        if (good) orientation = png_orientation(png, info);
    } catch (...) {
        png_destroy_read_struct(&png, &info, nullptr);
        throw;
    }
    png_destroy_read_struct(&png, &info, nullptr);
    if (!good) throw Error("it is a damaged PNG: " + reader.problem);
    return upright(std::move(image), orientation);
}

// ---- JPEG ---------------------------------------------------------------------------------------------------------

struct JpegErrors {
    jpeg_error_mgr base;
    std::jmp_buf jump;
    char problem[JMSG_LENGTH_MAX];
};

void jpeg_fail(j_common_ptr jpeg) {
    auto* errors = reinterpret_cast<JpegErrors*>(jpeg->err);
    jpeg->err->format_message(jpeg, errors->problem);
    std::longjmp(errors->jump, 1);
}

// A warning tells of damaged data: libjpeg would go on with pixels that it makes up.
void jpeg_warn(j_common_ptr jpeg, int level) {
    if (level < 0) jpeg_fail(jpeg);
}

// EXIF may go on in further segments; of XMP the last one counts.
int jpeg_orientation(const jpeg_decompress_struct& jpeg) {
    constexpr std::string_view exif("Exif\0\0", 6), xmp("http://ns.adobe.com/xap/1.0/\0", 29);
    Metadata metadata;
    for (auto marker = jpeg.marker_list; marker; marker = marker->next) {
        if (marker->marker != JPEG_APP0 + 1) continue;
        const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
        if (data.substr(0, exif.size()) == exif)
            metadata.exif.insert(metadata.exif.end(), marker->data + exif.size(), marker->data + data.size());
        else if (data.substr(0, xmp.size()) == xmp)
            metadata.xmp = data.substr(xmp.size());
    }
    return orientation_of(metadata);
}

// As `read_png`: left with a longjmp.
bool read_jpeg(jpeg_decompress_struct& jpeg, JpegErrors& errors, const Bytes& file, Image& image, int& orientation) {
    if (setjmp(errors.jump)) return false;
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&jpeg, TRUE);
    if (jpeg.num_components != 1 && jpeg.num_components != 3) throw Error("it is a CMYK JPEG: convert it to RGB");
    check_size(jpeg.image_width, jpeg.image_height);
    jpeg.out_color_space = jpeg.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    orientation = jpeg_orientation(jpeg);
    jpeg_start_decompress(&jpeg);
    image = Image(static_cast<int>(jpeg.output_width), static_cast<int>(jpeg.output_height), jpeg.output_components);
    while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = image.at(0, static_cast<int>(jpeg.output_scanline));
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    return true;
}

Image decode_jpeg(const Bytes& file) {
    jpeg_decompress_struct jpeg{};
    JpegErrors errors{};
    jpeg.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = jpeg_fail;
    errors.base.emit_message = jpeg_warn;
    Image image;
    int orientation = 1;
    bool good = false;
    try {
        good = read_jpeg(jpeg, errors, file, image, orientation);
    } catch (...) {
        jpeg_destroy_decompress(&jpeg);
        throw;
    }
    jpeg_destroy_decompress(&jpeg);
    if (!good) throw Error(std::string("it is a damaged JPEG: ") + errors.problem);
    return upright(std::move(image), orientation);
}

// ---- PGM and PPM --------------------------------------------------------------------------------------------------

// A number of the header, behind white space and comments.
int number(const Bytes& file, std::size_t& at) {
    while (at < file.size() && (std::isspace(file[at]) || file[at] == '#')) {
        if (file[at] == '#')
            while (at < file.size() && file[at] != '\n') ++at;
        else
            ++at;
    }
    int value = 0, digits = 0;
    for (; at < file.size() && file[at] >= '0' && file[at] <= '9' && digits < 9; ++at, ++digits)
        value = 10 * value + (file[at] - '0');
    if (!digits) throw Error("its header is damaged");
    return value;
}

Image decode_pnm(const Bytes& file) {
    std::size_t at = 2;
    const int width = number(file, at), height = number(file, at), most = number(file, at);
    check_size(width, height);
    if (most != 255) throw Error("it is no 8-bit PGM or PPM");
    Image image(width, height, file[1] == '5' ? 1 : 3);
    ++at;  // one white-space byte ends the header
    if (at > file.size() || file.size() - at < image.pixels.size()) throw Error("it is cut short");
    std::memcpy(image.pixels.data(), file.data() + at, image.pixels.size());
    return image;
}

}  // namespace

Bytes read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error("it cannot be read");
    Bytes bytes{std::istreambuf_iterator<char>(file), {}};
    if (file.bad()) throw Error("it cannot be read");
    if (bytes.empty()) throw Error("it is empty");
    return bytes;
}

Image decode(const Bytes& file) {
    if (file.size() > 8 && png_sig_cmp(file.data(), 0, 8) == 0) return decode_png(file);
    if (file.size() > 2 && file[0] == 0xFF && file[1] == 0xD8) return decode_jpeg(file);
    if (file.size() > 2 && file[0] == 'P' && (file[1] == '5' || file[1] == '6')) return decode_pnm(file);
    throw Error("it is no JPEG, PNG, PGM or PPM");
}
