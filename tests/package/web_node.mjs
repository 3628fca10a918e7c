// The page's own modules, one call a line: JSON in, JSON out. What a page has and Node.js has not is not needed here.
import { createInterface } from "node:readline";

const lib = new URL(process.argv[2]);
const load = (name) => import(new URL(name, lib));
const [{ decode, isWhole }, { prepare }, { Comparison, judge, distance, worst }, { parseNpy }, { orientationOf, withoutMetadata }] = await Promise.all(
  ["decode.js", "prepare.js", "judge.js", "npy.js", "exif.js"].map(load),
);
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const floats = (text) => new Float32Array(bytes(text).buffer);

const calls = {
  async prepare({ file, recipe }) {
    return Buffer.from(prepare(await decode(bytes(file), recipe), recipe)).toString("base64");
  },
  pixels({ data, width, height, channels, orientation, recipe }) {
    const image = { width, height, channels, data: bytes(data) };
    return Buffer.from(prepare({ image, orientation }, recipe)).toString("base64");
  },
  orientation: ({ file }) => orientationOf(bytes(file)),
  bare: ({ file }) => Buffer.from(withoutMetadata(bytes(file))).toString("base64"),
  whole: ({ file, type }) => isWhole(bytes(file), type),
  judge({ reference, candidate, size, limits }) {
    const seen = new Comparison("logits");
    seen.update(floats(reference), floats(candidate), size);
    return { result: seen.result(), reasons: judge([seen.result()], limits) };
  },
  distance: ({ reference, candidate }) => String(distance(floats(reference), floats(candidate))),
  worst: (report) => worst(report),
  npy({ file }) {
    const { shape, data } = parseNpy(bytes(file), "it");
    return { shape, data: Array.from(data) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { call, ...args } = JSON.parse(line);
  let answer;
  try {
    answer = { value: await calls[call](args) };
  } catch (error) {
    answer = { error: error.message, known: error.name === "VggdeployError" };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
