// Resizing as Pillow does it, to the last bit.
#pragma once

#include <string>

#include "image.hpp"

// `filter`: nearest, bilinear, bicubic or lanczos. Shrinking averages over all pixels that a new one covers.
// `tall_first`: an image whose height shrinks by more than twice as many pixels as its width is resized vertically first,
// as Pillow does since its release 13; before that the horizontal pass always came first.
Image resize(const Image& image, int width, int height, const std::string& filter, bool tall_first);
