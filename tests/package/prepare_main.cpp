// prepare MODEL OUT IMAGE...: the prepared pixels of each image as OUT/INDEX.raw, and why there are none on stderr.
#include <fstream>
#include <iostream>

#include "decode.hpp"
#include "prepare.hpp"

int main(int count, char** words) {
    const Model model = read_model(words[1]);
    for (int i = 3; i < count; ++i) {
        try {
            const Image image = prepare(decode(read_file(words[i])), model);
            std::ofstream file(std::string(words[2]) + "/" + std::to_string(i - 3) + ".raw", std::ios::binary);
            file.write(reinterpret_cast<const char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
        } catch (const Error& error) {
            std::cerr << words[i] << ": " << error.what() << "\n";
        }
    }
}
