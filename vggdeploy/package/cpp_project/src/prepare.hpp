// From an image to the graph's input: what vggdeploy's preprocess.py does, pixel for pixel.
#pragma once

#include "image.hpp"
#include "model.hpp"

// crop x crop pixels of model.channels bytes: alpha onto white, mode, shorter side to `resize`, centre crop.
Image prepare(const Image& image, const Model& model);
