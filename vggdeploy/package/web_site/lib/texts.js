// What a PNG says beside its pixels, as far as it can say which way up they are: what Pillow keeps of it, no more and no less.

import { VggdeployError } from "./errors.js";
import { chunks, inflate } from "./png.js";

const LIMIT = 2 ** 20; // bytes of one text, unpacked: Pillow's own
const NAMES = ["exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"];
const MARK = new TextEncoder().encode("Exif\0\0"); // stands before EXIF in other formats
const NONE = new Uint8Array();
const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);

/** The bytes before the first zero, and those behind it, if there is one. */
function cut(bytes) {
  const at = bytes.indexOf(0);
  return at < 0 ? [bytes] : [bytes.subarray(0, at), bytes.subarray(at + 1)];
}

async function unpack(bytes, method) {
  const refused = (why) => new VggdeployError(`the picture is a damaged PNG: ${why}`, "choose another one");
  if (method !== 0) throw refused("its text is packed in an unknown way");
  const found = await inflate([bytes], LIMIT + 1);
  if (found.length > LIMIT) throw refused("its text is too long");
  return found;
}

function isUtf8(bytes) {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

/** Name and value of an iTXt chunk, which may be packed; null where Pillow skips it. */
async function international(data) {
  const [key, rest] = cut(data);
  if (!rest || rest.length < 2 || (rest[0] && rest[1])) return null;
  const [language, behind] = cut(rest.subarray(2));
  const [translated, value] = cut(behind ?? NONE);
  if (!value || !NAMES.includes(latin1(key))) return null;
  const text = rest[0] ? await unpack(value, rest[1]) : value;
  return { key: latin1(key), value: text, good: [language, translated, text].every(isUtf8) };
}

/** What stands in an animation's chunks behind its first picture is not of that picture. */
function* ofFirst(bytes) {
  let [frames, pixels] = [0, false];
  for (const [name, data] of chunks(bytes)) {
    if (name === "acTL" && !pixels && data.length >= 8) {
      const said = new DataView(data.buffer, data.byteOffset).getUint32(0);
      frames = said <= 2 ** 31 ? said : 0;
    }
    if (name === "IDAT") pixels = true;
    if (name === "fcTL" && pixels && frames > 0) return;
    yield [name, data];
  }
}

/** The bytes of hexadecimal digits in pairs, with blanks between the pairs; null where it is anything else. */
function fromHex(text) {
  const found = [];
  for (let at = 0; at < text.length; ) {
    if (" \t\n\v\f\r".includes(text[at])) {
      at += 1;
      continue;
    }
    const pair = text.slice(at, at + 2);
    if (!/^[0-9a-fA-F]{2}$/.test(pair)) return null;
    found.push(parseInt(pair, 16));
    at += 2;
  }
  return Uint8Array.from(found);
}

/**
 * `{ exif, xmp }` of a PNG, each bytes or undefined; null where it is there and cannot be read. Of each name the last counts.
 *
 * EXIF stands in an eXIf chunk or, as ImageMagick and older programs write it, in hexadecimal in a text.
 */
export async function pngMetadata(bytes) {
  const found = {};
  for (const [name, data] of ofFirst(bytes)) {
    if (name === "eXIf") found.exif = Uint8Array.from([...MARK, ...data]);
    if (name === "iTXt") {
      const text = await international(data);
      if (text?.key === "XML:com.adobe.xmp") found.xmp = text.value;
      if (text?.good) found[text.key] = text.key === "exif" || text.key === "xmp" ? null : text.value;
    }
    if (name !== "tEXt" && name !== "zTXt") continue;
    const [bytesOfKey, rest = NONE] = cut(data);
    const key = latin1(bytesOfKey);
    const packed = name === "zTXt";
    if (!NAMES.includes(key)) continue;
    const value = packed ? await unpack(rest.subarray(1), rest[0] ?? 0) : rest;
    found[key] = key === "xmp" || (packed && key === "exif") ? null : value;
  }
  const lines = found["Raw profile type exif"];
  const profile = lines && fromHex(latin1(lines).split("\n").slice(3).join(""));
  const text = found["XML:com.adobe.xmp"];
  return { exif: found.exif !== undefined ? found.exif : profile, xmp: text?.length ? text : found.xmp };
}
