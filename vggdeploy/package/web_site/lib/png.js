// PNG, decoded as Pillow does: a canvas would multiply colours by their alpha, and apply colour profiles.

import { VggdeployError } from "./errors.js";
import { image } from "./resize.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // of a pixel, by colour type
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
// Adam7: of each pass the first column and row, and the steps.
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

export const isPng = (bytes) => SIGNATURE.every((value, index) => bytes[index] === value);

const damaged = (why) => new VggdeployError(`the picture is a damaged PNG: ${why}`, "choose another one");

// The checksum of ISO 3309, which stands behind every chunk.
const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  let sum = value;
  for (let bit = 0; bit < 8; bit++) sum = sum & 1 ? 0xedb88320 ^ (sum >>> 1) : sum >>> 1;
  return sum;
});

function crc(bytes) {
  let sum = 0xffffffff;
  for (let at = 0; at < bytes.length; at++) sum = CRC[(sum ^ bytes[at]) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

/** Name and content of every chunk up to the end. */
export function* chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (at + 12 + length > bytes.length) return;
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    yield [name, bytes.subarray(at + 8, at + 8 + length), view.getUint32(at + 8 + length)];
    if (name === "IEND") return;
    at += 12 + length;
  }
}

function readHeader(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const header = { width: view.getUint32(0), height: view.getUint32(4), depth: data[8], colour: data[9], interlaced: data[12] };
  if (!DEPTHS[header.colour]?.includes(header.depth)) throw damaged("its header makes no sense");
  return header;
}

export function pngSize(bytes) {
  const [[name, data]] = [...chunks(bytes)].slice(0, 1).concat([["", null]]);
  if (name !== "IHDR" || data.length < 13) throw damaged("it has no header");
  return readHeader(data);
}

/** What zlib packed, up to `limit` bytes of it. */
export async function inflate(parts, limit) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const made = new Uint8Array(limit);
  let length = 0;
  const reader = stream.getReader();
  try {
    for (let step = await reader.read(); !step.done && length < limit; step = await reader.read()) {
      made.set(step.value.subarray(0, limit - length), length);
      length += step.value.length;
    }
  } catch (error) {
    throw damaged(error.message || "it cannot be unpacked");
  }
  return made.subarray(0, length);
}

function paeth(a, b, c) {
  const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

/** Undoes the filter of one row in place; `above` is the row before it, or null. */
function unfilter(kind, row, above, step) {
  if (kind > 4) throw damaged("it has an unknown filter");
  if (kind === 0) return;
  for (let x = 0; x < row.length; x++) {
    const a = x >= step ? row[x - step] : 0;
    const b = above ? above[x] : 0;
    const c = above && x >= step ? above[x - step] : 0;
    row[x] += kind === 1 ? a : kind === 2 ? b : kind === 3 ? (a + b) >> 1 : paeth(a, b, c);
  }
}

/** The samples of one row as they are stored, 1 to 16 bits each. */
function* samples(row, depth, count) {
  for (let index = 0; index < count; index++) {
    if (depth === 16) yield (row[2 * index] << 8) | row[2 * index + 1];
    else if (depth === 8) yield row[index];
    else {
      const bit = index * depth;
      yield (row[bit >> 3] >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
    }
  }
}

/** All samples, `[height · width · samples]`. */
async function readSamples(header, parts) {
  const { width, height, depth, colour } = header;
  const each = SAMPLES[colour];
  const passes = (header.interlaced ? PASSES : [[0, 0, 1, 1]])
    .map(([x, y, dx, dy]) => ({ x, y, dx, dy, columns: Math.ceil((width - x) / dx), rows: Math.ceil((height - y) / dy) }))
    .filter(({ columns, rows }) => columns > 0 && rows > 0);
  const bytesOf = ({ columns }) => Math.ceil((columns * each * depth) / 8);
  const size = passes.reduce((all, p) => all + p.rows * (1 + bytesOf(p)), 0);
  const raw = await inflate(parts, size);
  if (raw.length < size) throw damaged("it is cut short");
  const made = new (depth === 16 ? Uint16Array : Uint8Array)(width * height * each);
  const step = Math.max(1, (each * depth) >> 3);
  let at = 0;
  for (const p of passes) {
    const length = bytesOf(p);
    let above = null;
    for (let y = 0; y < p.rows; y++, at += 1 + length) {
      const row = raw.subarray(at + 1, at + 1 + length);
      unfilter(raw[at], row, above, step);
      above = row;
      if (depth === 8 && p.dx === 1 && p.dy === 1) {
        made.set(row, y * length);
        continue;
      }
      let index = 0;
      for (const value of samples(row, depth, p.columns * each)) {
        const x = p.x + p.dx * Math.floor(index / each);
        made[((p.y + p.dy * y) * width + x) * each + (index++ % each)] = value;
      }
    }
  }
  return made;
}

/** 8 bits of a sample, as Pillow has them: grey of 16 bits by its range, other 16 bits by their high byte. */
function toBytes(values, { depth, colour }) {
  if (depth === 8) return values;
  if (depth === 16) return Uint8Array.from(values, colour === 0 ? (v) => Math.round(v / 257) : (v) => v >> 8);
  return Uint8Array.from(values, (v) => v * (255 / (2 ** depth - 1)));
}

function fromPalette(values, header, palette, alphas) {
  const channels = alphas ? 4 : 3;
  const made = image(header.width, header.height, channels);
  for (const [pixel, index] of values.entries()) {
    if (3 * index + 2 >= palette.length) throw damaged("it uses a colour that it does not have");
    made.data.set(palette.subarray(3 * index, 3 * index + 3), channels * pixel);
    if (alphas) made.data[4 * pixel + 3] = index < alphas.length ? alphas[index] : 255;
  }
  return made;
}

/** One colour that is transparent, as 16-bit numbers: an alpha channel of 0 and 255. */
function withClear(values, bytes, header, clear) {
  const { width, height, depth, colour } = header;
  const each = SAMPLES[colour];
  const view = new DataView(clear.buffer, clear.byteOffset, clear.byteLength);
  // Of 16-bit grey the whole numbers are compared; of the others Pillow compares the low byte with its own 8 bits.
  const whole = colour === 0 && (depth === 16 || depth === 1);
  const wanted = Array.from({ length: each }, (_, c) => (whole ? view.getUint16(2 * c) : view.getUint16(2 * c) & 255));
  const seen = whole ? values : bytes;
  const made = image(width, height, each + 1);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const from = pixel * each;
    made.data.set(bytes.subarray(from, from + each), pixel * (each + 1));
    made.data[pixel * (each + 1) + each] = wanted.every((value, c) => seen[from + c] === value) ? 0 : 255;
  }
  return made;
}

/** The picture of a PNG file, its first one if it is animated. */
export async function decodePng(bytes) {
  const found = {};
  const parts = [];
  for (const [name, data, sum] of chunks(bytes)) {
    const start = data.byteOffset - bytes.byteOffset - 4; // the name counts, too
    if (crc(bytes.subarray(start, start + 4 + data.length)) !== sum) {
      throw damaged(`the checksum of ${name} is another`);
    }
    if (name === "IDAT") parts.push(data);
    else if (!(name in found)) found[name] = data;
  }
  const header = pngSize(bytes);
  if (!parts.length) throw damaged("it has no pixels");
  const values = await readSamples(header, parts);
  if (header.colour === 3) {
    if (!found.PLTE) throw damaged("it has no palette");
    return fromPalette(values, header, found.PLTE, found.tRNS);
  }
  const data = toBytes(values, header);
  const clear = found.tRNS;
  const each = SAMPLES[header.colour];
  if (clear && clear.length >= 2 * each && (header.colour === 0 || header.colour === 2)) {
    return withClear(values, data, header, clear);
  }
  return image(header.width, header.height, each, data);
}
