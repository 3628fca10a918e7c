// From decoded pixels to the graph's input, as vggdeploy.preprocess does it: upright, opaque, grey or colour, resized, cropped.

import { VggdeployError } from "./errors.js";
import { image, resize } from "./resize.js";

export const MAX_PIXELS = 89_478_485; // Pillow's limit, which vggdeploy has everywhere

/** Turned as EXIF's orientation 1 to 8 says. */
export function upright(source, orientation) {
  if (orientation === 1) return source;
  const { width, height, channels, data } = source;
  const swapped = orientation >= 5; // these exchange rows and columns
  const turned = swapped ? image(height, width, channels) : image(width, height, channels);
  const [right, bottom] = [width - 1, height - 1];
  const from = {
    2: (x, y) => [right - x, y],
    3: (x, y) => [right - x, bottom - y],
    4: (x, y) => [x, bottom - y],
    5: (x, y) => [y, x],
    6: (x, y) => [y, bottom - x],
    7: (x, y) => [right - y, bottom - x],
    8: (x, y) => [right - y, x],
  }[orientation];
  for (let y = 0, at = 0; y < turned.height; y++) {
    for (let x = 0; x < turned.width; x++) {
      const [column, row] = from(x, y);
      const start = (row * width + column) * channels;
      for (let c = 0; c < channels; c++) turned.data[at++] = data[start + c];
    }
  }
  return turned;
}

// Pillow's alpha_composite over opaque white, in its own integers.
function overWhite(value, alpha) {
  const front = alpha * 128;
  const sum = value * front + 255 * (255 * 128 - front) + (0x80 << 7);
  return (((sum >>> 8) + sum) >>> 8) >>> 7;
}

function withoutAlpha(source) {
  const colours = source.channels - 1;
  if (colours !== 1 && colours !== 3) return source;
  const made = image(source.width, source.height, colours);
  for (let from = 0, to = 0; from < source.data.length; from += source.channels) {
    for (let c = 0; c < colours; c++) made.data[to++] = overWhite(source.data[from + c], source.data[from + colours]);
  }
  return made;
}

function withChannels(source, channels) {
  if (source.channels === channels) return source;
  const { width, height, data } = source;
  const made = image(width, height, channels);
  for (let pixel = 0; pixel < width * height; pixel++) {
    if (channels === 3) made.data.fill(data[pixel], 3 * pixel, 3 * pixel + 3);
    // ITU-R 601-2 luma in 16 bits of fraction.
    else made.data[pixel] = (data[3 * pixel] * 19595 + data[3 * pixel + 1] * 38470 + data[3 * pixel + 2] * 7471 + 0x8000) >> 16;
  }
  return made;
}

/** A half goes to the even number, as Python has it. */
function roundEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** The size after resizing: the shorter side exact, the other rounded down. */
function resized({ width, height }, side) {
  const other = Math.floor((side * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [side, other] : [other, side];
}

/** An image of this many pixels is refused before it is decoded. */
export function checkSize(width, height, recipe) {
  if (width * height === 0) throw new VggdeployError(`the picture has no pixels (${width} × ${height})`, "choose another one");
  if (width * height > MAX_PIXELS) {
    throw new VggdeployError(`the picture has ${width} × ${height} pixels, more than this page takes`, "scale it down");
  }
  const [newWidth, newHeight] = resized({ width, height }, recipe.resize);
  if (newWidth * newHeight > MAX_PIXELS) {
    throw new VggdeployError(`the picture is too elongated (${width} × ${height})`, "cut it to a shape nearer to a square");
  }
}

/** `Uint8Array [crop · crop · channels]` of a decoded picture `{ image, orientation }`. */
export function prepare(decoded, recipe) {
  checkSize(decoded.image.width, decoded.image.height, recipe);
  const source = withChannels(withoutAlpha(upright(decoded.image, decoded.orientation)), recipe.channels);
  const [width, height] = resized(source, recipe.resize);
  const full = resize(source, width, height, recipe.interpolation, recipe.tall_first);
  const { crop, channels } = recipe;
  const [left, top] = [roundEven((width - crop) / 2), roundEven((height - crop) / 2)];
  const made = new Uint8Array(crop * crop * channels);
  for (let y = 0; y < crop; y++) {
    const start = ((top + y) * width + left) * channels;
    made.set(full.data.subarray(start, start + crop * channels), y * crop * channels);
  }
  return made;
}
