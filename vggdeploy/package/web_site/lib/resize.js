// Pillow's resampling: two passes over 8-bit pixels, each with weights of 22 bits after the point, each rounded to 8 bits.
// An image is { width, height, channels, data }, its data row after row, the channels of a pixel side by side.

import { VggdeployError } from "./errors.js";

const BITS = 22; // 32, less 8 of the pixel and 2 for overshoot

const triangle = (x) => Math.max(0, 1 - Math.abs(x));

// Keys 1981, with a = -1/2.
function cubic(signed) {
  const a = -0.5;
  const x = Math.abs(signed);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x) {
  if (x === 0) return 1;
  const turned = x * Math.PI;
  return Math.sin(turned) / turned;
}

const lanczos = (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0);

// How far each reaches, in pixels of the smaller image, and its weights.
const KERNELS = { bilinear: [1, triangle], bicubic: [2, cubic], lanczos: [3, lanczos] };

export function image(width, height, channels, data = new Uint8Array(width * height * channels)) {
  return { width, height, channels, data };
}

/** Of each new pixel the first old one that it is made of, and their weights. */
function taps(from, to, [reach, weight]) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = reach * stretch;
  const found = [];
  for (let index = 0; index < to; index++) {
    const center = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const weights = [];
    let sum = 0;
    for (let x = first; x < last; x++) {
      weights.push(weight((x - center + 0.5) * (1 / stretch)));
      sum += weights.at(-1);
    }
    const fixed = Int32Array.from(weights, (w) => {
      const share = sum === 0 ? w : w / sum;
      return Math.trunc((share < 0 ? -0.5 : 0.5) + share * 2 ** BITS);
    });
    found.push({ first, fixed });
  }
  return found;
}

function rounded(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** `count` values one after another in `made`, of as many in `data`, where neighbours along the pass are `step` apart. */
function pass(data, start, step, { first, fixed }, made, target, count) {
  const length = fixed.length;
  for (let index = 0; index < count; index++) {
    let sum = 2 ** (BITS - 1);
    let from = start + first * step + index;
    for (let tap = 0; tap < length; tap++, from += step) sum += data[from] * fixed[tap];
    made[target + index] = rounded(sum);
  }
}

function resizeWidth(source, width, kernel) {
  const { height, channels, data } = source;
  if (source.width === width) return source;
  const made = image(width, height, channels);
  const columns = taps(source.width, width, kernel);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      pass(data, y * source.width * channels, channels, columns[x], made.data, (y * width + x) * channels, channels);
    }
  }
  return made;
}

function resizeHeight(source, height, kernel) {
  if (source.height === height) return source;
  const stride = source.width * source.channels;
  const made = image(source.width, height, source.channels);
  for (const [y, row] of taps(source.height, height, kernel).entries()) {
    pass(source.data, 0, stride, row, made.data, y * stride, stride);
  }
  return made;
}

// Positions are added up, not multiplied: that is where Pillow's last bit comes from.
function places(from, to) {
  const scale = from / to;
  const found = new Int32Array(to);
  for (let index = 0, place = scale * 0.5; index < to; index++, place += scale) {
    found[index] = Math.min(Math.trunc(place), from - 1);
  }
  return found;
}

function nearest(source, width, height) {
  const { channels, data } = source;
  const columns = places(source.width, width);
  const made = image(width, height, channels);
  for (const [y, row] of places(source.height, height).entries()) {
    for (let x = 0; x < width; x++) {
      const from = (row * source.width + columns[x]) * channels;
      for (let c = 0; c < channels; c++) made.data[(y * width + x) * channels + c] = data[from + c];
    }
  }
  return made;
}

/** As `Image.resize` of Pillow; `tallFirst` as from its release 13 on. */
export function resize(source, width, height, filter, tallFirst) {
  if (source.width === width && source.height === height) return source;
  if (filter === "nearest") return nearest(source, width, height);
  const kernel = KERNELS[filter];
  if (!kernel) throw new VggdeployError(`${filter} is no interpolation of this page`, "package the site again");
  // Each pass rounds to 8 bits, so their order shows in the last one.
  const tall = height < source.height && source.height - height > 2 * (source.width - width);
  if (tallFirst && tall) return resizeWidth(resizeHeight(source, height, kernel), width, kernel);
  return resizeHeight(resizeWidth(source, width, kernel), height, kernel);
}
