// Which way up a picture is: EXIF's orientation, or else XMP's, in JPEG, PNG and WebP.

import { isPng } from "./png.js";
import { pngMetadata } from "./texts.js";

const ORIENTATION = 274;
const [SHORTS, LONGS] = [[3, 8], [4, 9]]; // types of whole numbers
const ascii = (bytes) => String.fromCharCode(...bytes);
const starts = (bytes, text) => ascii(bytes.subarray(0, text.length)) === text;

/** The orientation that a block of EXIF gives; null where it gives none, 1 where none can be read of it. */
function fromExif(bytes) {
  for (let times = 0; times < 2 && starts(bytes, "Exif\0\0"); times++) bytes = bytes.subarray(6);
  if (!bytes.length) return null;
  const little = starts(bytes, "II");
  if (bytes.length < 8 || (!little && !starts(bytes, "MM"))) return 1;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const u16 = (at) => (at + 2 <= bytes.length ? view.getUint16(at, little) : 0);
  const u32 = (at) => (at + 4 <= bytes.length ? view.getUint32(at, little) : 0);
  if (u16(2) !== 42 && u16(2) !== 42 << 8) return 1; // some write it the wrong way around
  const directory = u32(4);
  for (let index = 0; index < u16(directory); index++) {
    const entry = directory + 2 + 12 * index;
    if (entry + 12 > bytes.length) return null;
    const [tag, type, count] = [u16(entry), u16(entry + 2), u32(entry + 4)];
    if (tag !== ORIENTATION || type < 1 || type > 12 || count === 0) continue;
    if (count !== 1) return 1;
    return SHORTS.includes(type) ? u16(entry + 8) : LONGS.includes(type) ? u32(entry + 8) : 1;
  }
  return null;
}

function fromXmp(bytes) {
  const found = new TextDecoder("latin1").decode(bytes).match(/tiff:Orientation(?:="|>)([0-9])/);
  return found ? Number(found[1]) : 1;
}

/** Marker and content of every segment of a JPEG up to its pixels; the last one, 0xda, is all that is left of the file. */
export function* segments(bytes) {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at += 1;
      continue;
    }
    if (marker === 0xda) {
      yield [marker, bytes.subarray(at)];
      return;
    }
    if (marker === 0xd9) return;
    const length = (bytes[at + 2] << 8) | bytes[at + 3];
    if (length < 2 || at + 2 + length > bytes.length) return;
    yield [marker, bytes.subarray(at + 4, at + 2 + length)];
    at += 2 + length;
  }
}

/** Name and content of every chunk of a WebP. */
export function* riffChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (at + 8 + length > bytes.length) return;
    yield [ascii(bytes.subarray(at, at + 4)), bytes.subarray(at + 8, at + 8 + length)];
    at += 8 + length + (length % 2);
  }
}

/**
 * A copy whose EXIF and XMP nobody finds: browsers turn a picture as they say, some by the one and some by both, and none can be
 * told not to.
 */
export function withoutMetadata(bytes) {
  const copy = bytes.slice();
  if (starts(copy, "\xff\xd8")) {
    for (const [marker, data] of segments(copy)) if (marker === 0xe1) data.fill(0x20, 0, 6);
  } else if (starts(copy, "RIFF")) {
    for (const [name, data] of riffChunks(copy)) {
      if (name !== "EXIF" && name !== "XMP ") continue;
      data.fill(0);
      copy.set([0x4a, 0x55, 0x4e, 0x4b], data.byteOffset - 8); // JUNK
    }
  }
  return copy;
}

const XMP = "http://ns.adobe.com/xap/1.0/\0";

/** `{ exif, xmp }`, as `pngMetadata` has them. */
async function metadata(bytes) {
  if (isPng(bytes)) return pngMetadata(bytes);
  let exif, xmp;
  if (starts(bytes, "\xff\xd8")) {
    const parts = []; // what is too long for one segment goes on in the next
    for (const [marker, data] of segments(bytes)) {
      if (marker !== 0xe1) continue;
      if (starts(data, XMP)) xmp = data.subarray(XMP.length);
      if (starts(data, "Exif\0\0")) parts.push(data.subarray(parts.length ? 6 : 0));
    }
    exif = new Uint8Array(await new Blob(parts).arrayBuffer());
  } else if (starts(bytes, "RIFF") && starts(bytes.subarray(8), "WEBP")) {
    for (const [name, data] of riffChunks(bytes)) {
      if (name === "EXIF") exif ??= data;
      else if (name === "XMP ") xmp ??= data;
    }
  }
  return { exif, xmp };
}

/** 1 to 8; 1 where nothing is said, or nothing that makes sense. */
export async function orientationOf(bytes) {
  const { exif, xmp } = await metadata(bytes);
  if (exif === null) return 1;
  const value = (exif && fromExif(exif)) ?? (xmp ? fromXmp(xmp) : 1);
  return value >= 1 && value <= 8 ? value : 1;
}
