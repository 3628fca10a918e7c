// Arrays of NumPy's .npy files, in the two types that a bundle has.

import { VggdeployError } from "./errors.js";

const TYPES = { "|u1": Uint8Array, "<f4": Float32Array };
const HEADER = /^\{'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \}\s*$/;

/** `{ shape, data }` of the bytes of a file: row after row. */
export function parseNpy(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = String.fromCharCode(...bytes.subarray(1, 6));
  const [version, start] = bytes[6] === 1 ? [1, 10] : [2, 12];
  const length = bytes.length < 12 ? 0 : version === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + length)).match(HEADER);
  if (magic !== "NUMPY" || !header || !(header[1] in TYPES)) {
    throw new VggdeployError(`${name} is not an array that this page reads`, "package the site again");
  }
  const shape = header[2].split(",").filter((n) => n.trim()).map(Number);
  const size = shape.reduce((all, n) => all * n, 1);
  const body = bytes.slice(start + length); // a copy: its own buffer is aligned
  const Type = TYPES[header[1]];
  if (body.length !== size * Type.BYTES_PER_ELEMENT) {
    throw new VggdeployError(`${name} has ${body.length} bytes of values, not ${size * Type.BYTES_PER_ELEMENT}`, "package the site again");
  }
  return { shape, data: new Type(body.buffer) };
}
