// classify MODEL IMAGE...: labels and probabilities, best first.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include "decode.hpp"
#include "model.hpp"
#include "prepare.hpp"

namespace {

constexpr const char* kUsage =
    "usage: classify [--top N] [--device cpu|cuda] [--threads N] [--dump DIR] MODEL IMAGE...\n"
    "MODEL is the directory with model.txt. --dump writes DIR/input.raw (uint8) and DIR/output.raw (float32) of all images.\n";

struct Arguments {
    int top = 3;
    int threads = 0;
    std::string device = "cpu";
    std::string dump;
    std::string model;
    std::vector<std::string> images;
};

int positive(const std::string& option, const std::string& value) {
    try {
        std::size_t used = 0;
        const int number = std::stoi(value, &used);
        if (used == value.size() && number > 0) return number;
    } catch (const std::logic_error&) {
    }
    throw std::invalid_argument(option + " takes a number above 0, not '" + value + "'");
}

Arguments parse(int count, char** words) {
    Arguments found;
    std::vector<std::string> rest;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const bool option = word.rfind("--", 0) == 0;
        if (!option) {
            rest.push_back(word);
            continue;
        }
        if (i + 1 == count) throw std::invalid_argument(word + " misses its value");
        const std::string value = words[++i];
        if (word == "--top") found.top = positive(word, value);
        else if (word == "--threads") found.threads = positive(word, value);
        else if (word == "--device" && (value == "cpu" || value == "cuda")) found.device = value;
        else if (word == "--dump") found.dump = value;
        else throw std::invalid_argument("unknown option " + word + " " + value);
    }
    if (rest.size() < 2) throw std::invalid_argument("a model and an image are needed");
    found.model = rest.front();
    found.images.assign(rest.begin() + 1, rest.end());
    return found;
}

std::vector<float> probabilities(std::vector<float> scores, const Model& model) {
    if (model.probabilities) return scores;
    const float most = *std::max_element(scores.begin(), scores.end());
    float sum = 0;
    for (float& score : scores) sum += score = std::exp(score - most);
    for (float& score : scores) score /= sum;
    return scores;
}

void print(const std::string& image, const std::vector<float>& found, const Model& model, int top) {
    std::vector<std::size_t> order(found.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return found[a] > found[b]; });
    order.resize(std::min(order.size(), static_cast<std::size_t>(top)));
    std::cout << image << ":";
    const char* comma = " ";
    for (const std::size_t index : order) {
        char percent[32];
        std::snprintf(percent, sizeof percent, "%.1f%%", 100.0 * found[index]);
        std::cout << comma << (model.labels.empty() ? std::to_string(index) : model.labels[index]) << " " << percent;
        comma = ", ";
    }
    std::cout << "\n";
}

class Dump {
public:
    explicit Dump(const std::string& directory) {
        if (directory.empty()) return;
        input_.open(directory + "/input.raw", std::ios::binary);
        output_.open(directory + "/output.raw", std::ios::binary);
        if (!input_ || !output_) throw Error(directory + " cannot be written to");
    }
    void add(const Image& image, const std::vector<float>& scores) {
        if (!input_.is_open()) return;
        input_.write(reinterpret_cast<const char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
        output_.write(reinterpret_cast<const char*>(scores.data()),
                      static_cast<std::streamsize>(scores.size() * sizeof(float)));
    }

private:
    std::ofstream input_, output_;
};

int classify(const Arguments& arguments) {
    const Model model = read_model(arguments.model);
    const auto classifier = open_classifier(model, arguments.device, arguments.threads);
    Dump dump(arguments.dump);
    int bad = 0;
    for (const std::string& path : arguments.images) {
        Image image;
        try {
            image = prepare(decode(read_file(path)), model);
        } catch (const Error& error) {  // an image that cannot be used is reported; the others are answered
            std::cerr << "error: " << path << ": " << error.what() << "\n";
            ++bad;
            continue;
        }
        const std::vector<float> scores = classifier->run(image.pixels);
        if (scores.size() != static_cast<std::size_t>(model.classes)) throw Error("the model gave another number of scores");
        for (const float score : scores)
            if (!std::isfinite(score)) throw Error("the model gave a NaN or infinity");
        dump.add(image, scores);
        print(path, probabilities(scores, model), model, arguments.top);
    }
    return bad ? 1 : 0;
}

}  // namespace

int main(int count, char** words) {
    Arguments arguments;
    try {
        arguments = parse(count, words);
    } catch (const std::invalid_argument& error) {
        std::cerr << "error: " << error.what() << "\n" << kUsage;
        return 2;
    }
    try {
        return classify(arguments);
    } catch (const std::exception& error) {  // a runtime's own errors too, of which some bring a stack trace
        const std::string text = error.what();
        std::cerr << "error: " << text.substr(0, text.find('\n')) << "\n";
        return 1;
    }
}
