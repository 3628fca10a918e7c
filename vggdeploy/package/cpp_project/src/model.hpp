// What model/model.txt says about the model, and the labels beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct Model {
    std::string file;           // the model itself, as a path
    std::string input;          // the graph's input: uint8 [N, crop, crop, channels]
    std::string output;         // the graph's output that holds the scores: float32 [N, classes]
    int output_index = 0;       // its place among the outputs
    bool probabilities = false; // the scores are probabilities already; else logits
    int classes = 0;
    int channels = 3;
    int resize = 0;
    int crop = 0;
    std::string interpolation;
    bool tall_first = false;    // the order of the passes: see resize.hpp
    std::vector<std::string> labels;  // empty, or one for each class
};

// Reads directory/model.txt and directory/labels.txt. Throws Error.
Model read_model(const std::string& directory);

// A model that is ready to run; each runtime's file defines `open_classifier`.
class Classifier {
public:
    virtual ~Classifier() = default;
    // uint8 [crop, crop, channels] -> the scores of one image. Throws Error. One call at a time.
    virtual std::vector<float> run(const std::vector<std::uint8_t>& image) = 0;
};

// `device`: cpu or cuda. `threads`: 0 for the runtime's default.
std::unique_ptr<Classifier> open_classifier(const Model& model, const std::string& device, int threads);
