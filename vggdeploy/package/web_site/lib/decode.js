// From a file, or what a page has drawn, to pixels. PNG is decoded here, to Pillow's own bits; what the browser decodes is
// JPEG, WebP, GIF and BMP, and how that compares with Pillow is part of the proof (proof.js).

import { VggdeployError } from "./errors.js";
import { orientationOf, segments, withoutMetadata } from "./exif.js";
import { decodePng, isPng, pngSize } from "./png.js";
import { checkSize } from "./prepare.js";
import { image } from "./resize.js";

const KNOWN = [
  ["image/jpeg", (b) => b[0] === 0xff && b[1] === 0xd8],
  ["image/webp", (b) => text(b, 0, 4) === "RIFF" && text(b, 8, 12) === "WEBP"],
  ["image/gif", (b) => text(b, 0, 4) === "GIF8"],
  ["image/bmp", (b) => text(b, 0, 2) === "BM"],
];
const TILE = 2048;
const MAX_BYTES = 256 * 2 ** 20;
const text = (bytes, start, stop) => String.fromCharCode(...bytes.subarray(start, stop));

function canvas(width, height) {
  if (globalThis.OffscreenCanvas) return new OffscreenCanvas(width, height);
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** The pixels of what can be drawn, as RGBA. Tile by tile: of a canvas that is too large for it, a browser gives nothing. */
function drawn(source, width, height) {
  const [columns, rows] = [Math.min(width, TILE), Math.min(height, TILE)];
  // willReadFrequently keeps the canvas on the CPU, where no GPU driver rounds.
  const context = canvas(columns, rows).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.imageSmoothingEnabled = false;
  const made = image(width, height, 4);
  for (let top = 0; top < height; top += rows) {
    for (let left = 0; left < width; left += columns) {
      context.clearRect(0, 0, columns, rows);
      context.drawImage(source, -left, -top, width, height);
      const [across, down] = [Math.min(columns, width - left), Math.min(rows, height - top)];
      const { data } = context.getImageData(0, 0, across, down, { colorSpace: "srgb" });
      for (let y = 0; y < down; y++) {
        made.data.set(data.subarray(4 * across * y, 4 * across * (y + 1)), 4 * ((top + y) * width + left));
      }
    }
  }
  return made;
}

/** Width, height and components of a JPEG's frame header. */
function jpegFrame(bytes) {
  for (const [marker, data] of segments(bytes)) {
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame && data.length >= 6) return { height: (data[1] << 8) | data[2], width: (data[3] << 8) | data[4], components: data[5] };
  }
  throw new VggdeployError("the picture is a damaged JPEG: it has no size", "choose another one");
}

function checkFirst(bytes, recipe) {
  if (isPng(bytes)) {
    const { width, height } = pngSize(bytes);
    checkSize(width, height, recipe);
  } else if (KNOWN[0][1](bytes)) {
    const { width, height, components } = jpegFrame(bytes);
    if (components === 4) throw new VggdeployError("the picture is in CMYK, which each browser shows in its own way", "save it in RGB");
    checkSize(width, height, recipe);
  }
}

/** What ends before its end is decoded by some browsers with grey where pixels are missing, and refused by Pillow. */
export function isWhole(bytes, type) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 12) return false;
  if (type === "image/jpeg") return hasJpegEnd(bytes);
  if (type === "image/gif") return hasFrame(bytes);
  return bytes.length >= (type === "image/webp" ? 8 + view.getUint32(4, true) : view.getUint32(2, true));
}

/** Whether the end of the picture stands behind its pixels: before them a thumbnail may have an end of its own. */
function hasJpegEnd(bytes) {
  for (const [marker, rest] of segments(bytes)) {
    if (marker !== 0xda) continue;
    for (let at = rest.length - 2; at >= 2; at--) if (rest[at] === 0xff && rest[at + 1] === 0xd9) return true;
  }
  return false;
}

/** Whether the first frame of a GIF is all there. */
function hasFrame(bytes) {
  const palette = (flags) => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
  let at = 13 + palette(bytes[10]);
  while (at < bytes.length) {
    const kind = bytes[at];
    if (kind !== 0x21 && kind !== 0x2c) return false;
    at += kind === 0x21 ? 2 : 11 + palette(bytes[at + 9]);
    while (at < bytes.length && bytes[at] !== 0) at += 1 + bytes[at];
    if (at >= bytes.length) return false;
    at += 1;
    if (kind === 0x2c) return true;
  }
  return false;
}

/** `{ image, orientation }` of a Blob, the bytes of an image file, or ImageData, ImageBitmap, canvas, video or img element. */
export async function decode(source, recipe) {
  if (source instanceof Blob) {
    if (source.size > MAX_BYTES) throw new VggdeployError("the file is larger than a picture can be", "choose another one");
    return decodeFile(new Uint8Array(await source.arrayBuffer()), recipe);
  }
  if (source instanceof ArrayBuffer) return decodeFile(new Uint8Array(source), recipe);
  if (source instanceof Uint8Array) return decodeFile(source, recipe);
  if (typeof ImageData !== "undefined" && source instanceof ImageData) {
    return { image: image(source.width, source.height, 4, source.data), orientation: 1 };
  }
  const width = source?.videoWidth || source?.naturalWidth || source?.width;
  const height = source?.videoHeight || source?.naturalHeight || source?.height;
  if (!width || !height) throw new VggdeployError("this is not a picture", "give a file, or what a canvas can draw");
  checkSize(width, height, recipe);
  return { image: drawn(source, width, height), orientation: 1 };
}

async function decodeFile(bytes, recipe) {
  if (!bytes.length) throw new VggdeployError("the file is empty (0 bytes)", "choose another one");
  checkFirst(bytes, recipe);
  if (isPng(bytes)) return { image: await decodePng(bytes), orientation: await orientationOf(bytes) };
  const type = KNOWN.find(([, is]) => is(bytes))?.[0];
  if (!type) throw new VggdeployError("the file is not a picture in a format that this page knows", "give a JPEG, PNG, WebP, GIF or BMP");
  if (!isWhole(bytes, type)) throw new VggdeployError("the picture is cut short", "choose another one");
  let bitmap;
  try {
    // As it is stored: turning it is for this code, and colour profiles are not applied.
    const blob = new Blob([withoutMetadata(bytes)], { type });
    bitmap = await createImageBitmap(blob, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new VggdeployError("the picture is damaged, or of a kind that this browser does not know", "choose another one");
  }
  try {
    checkSize(bitmap.width, bitmap.height, recipe);
    return { image: drawn(bitmap, bitmap.width, bitmap.height), orientation: await orientationOf(bytes) };
  } finally {
    bitmap.close();
  }
}
