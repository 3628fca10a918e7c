// The proof on the visitor's device: known pictures whose answers travel with the model, judged as vggdeploy judges them.

import { reason } from "./backends.js";
import { decode } from "./decode.js";
import { VggdeployError } from "./errors.js";
import { Comparison, distance, judge } from "./judge.js";
import { parseNpy } from "./npy.js";
import { decodePng } from "./png.js";
import { prepare } from "./prepare.js";

const TIMED_CALLS = 7; // the median of so many decides which backend is faster
const TRIED_CALLS = 3;
const SLOWER = 2; // times another backend's time: then a backend is not worth its proof

/** Pictures, the reference's outputs for them, and the limits. */
export async function readGolden(files, site, kind) {
  const { images, outputs } = site[kind];
  const read = async (path) => parseNpy(await files.read(path), path);
  const wanted = {};
  for (const { name } of site.outputs) wanted[name] = await read(outputs[name]);
  const given = await read(images);
  const size = site.input.shape.reduce((all, n) => all * n, 1);
  const count = given.shape[0];
  const whole = Object.values(wanted).every((array) => array.shape[0] >= 1 && array.shape[0] <= count);
  if (!count || given.data.length !== count * size || !whole) {
    throw new VggdeployError(`the ${kind} pictures and their answers do not fit each other`, "package the site again");
  }
  const picture = (index) => given.data.subarray(index * size, (index + 1) * size);
  return { kind, count, picture, wanted, limits: site[kind].limits };
}

async function compareAll(session, golden, onImage) {
  const comparisons = Object.fromEntries(Object.keys(golden.wanted).map((name) => [name, new Comparison(name)]));
  const answers = [];
  for (let index = 0; index < golden.count; index++) {
    const found = await session.run(golden.picture(index));
    for (const [name, { shape, data }] of Object.entries(golden.wanted)) {
      if (index >= shape[0]) continue; // of large feature maps fewer travel
      const size = data.length / shape[0];
      comparisons[name].update(data.subarray(index * size, (index + 1) * size), found[name], size);
    }
    answers.push(found);
    await onImage();
  }
  return [Object.values(comparisons).map((comparison) => comparison.result()), answers];
}

/**
 * The proof of one session: `{ passed, slower, reasons, outputs, stress, milliseconds }`, and what it answered, to ask again
 * later. One that takes far longer than `fastest` milliseconds is not proven, and never used.
 */
export async function prove(session, golden, stress, fastest, onImage) {
  const proof = { passed: false, slower: false, reasons: [], outputs: [], stress: [], milliseconds: null };
  try {
    await session.run(golden.picture(0)); // the first call compiles
    proof.milliseconds = await time(session, golden, TRIED_CALLS);
    if (proof.milliseconds > SLOWER * fastest) return [{ ...proof, slower: true }, []];
    const [outputs, answers] = await compareAll(session, golden, onImage);
    proof.outputs = outputs;
    proof.reasons = judge(outputs, golden.limits);
    if (stress && !proof.reasons.length) {
      [proof.stress] = await compareAll(session, stress, onImage);
      proof.reasons = judge(proof.stress, stress.limits).map((text) => `on the stress pictures, ${text}`);
    }
    if (!proof.reasons.length) {
      proof.milliseconds = await time(session, golden, TIMED_CALLS);
      proof.reasons = await repeated(session, golden, answers, 0);
    }
    proof.passed = proof.reasons.length === 0;
    return [proof, answers];
  } catch (error) {
    proof.reasons = [...proof.reasons, reason(error)];
    return [proof, []];
  }
}

/** The median of so many calls. */
async function time(session, golden, calls) {
  const times = [];
  for (let call = 0; call < calls; call++) {
    const start = performance.now();
    await session.run(golden.picture(call % golden.count));
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[calls >> 1];
}

/** Why a known picture's answer is not the one that it had in the proof; none where it is. */
export async function repeated(session, golden, answers, index) {
  const now = await session.run(golden.picture(index));
  for (const [name, before] of Object.entries(answers[index])) {
    const l2 = distance(before, now[name]);
    if (!(l2 <= golden.limits.repeat)) return [`a known picture got another answer than in the proof: ${name} changed`];
  }
  return [];
}

/**
 * How this browser's pictures compare with those of the training: files whose pixels travel with the model, prepared again.
 * Beside the report come the pairs of pixels that are close and not the same, see `countFlips`.
 */
export async function checkPreparing(files, site) {
  const { files: paths, prepared, jpeg_levels: levels } = site.preparing;
  const recipe = site.preprocess;
  const found = { files: paths.length, exact: 0, within: 0, flips: 0, refused: [], reasons: [] };
  const close = []; // pairs of pixels that differ a little
  if (!paths.length) return [found, close];
  const picture = await decodePng(await files.read(prepared));
  const size = recipe.crop * recipe.crop * recipe.channels;
  for (const [index, path] of paths.entries()) {
    const wanted = picture.data.subarray(index * size, (index + 1) * size);
    const name = path.split("/").pop();
    let pixels;
    const bytes = await files.read(path);
    try {
      pixels = prepare(await decode(bytes, recipe), recipe);
    } catch (error) {
      found.refused.push(`${name}: ${error.message}`); // a picture that gets no answer gets no wrong one
      continue;
    }
    const worst = pixels.reduce((most, value, at) => Math.max(most, Math.abs(value - wanted[at])), 0);
    if (worst === 0) found.exact += 1;
    else if (path.endsWith(".jpg") && worst <= levels) close.push([wanted, pixels]);
    else found.reasons.push(`${name}: pixels differ by up to ${worst} of 255 levels from those of the training`);
  }
  found.within = close.length;
  return [found, close];
}

/** How many pairs of pixels get different classes. */
export async function countFlips(session, pairs) {
  let flips = 0;
  for (const [one, other] of pairs) {
    const best = [];
    for (const pixels of [one, other]) {
      const { probabilities, logits } = await session.run(pixels);
      const scores = probabilities ?? logits;
      best.push(scores.indexOf(Math.max(...scores)));
    }
    flips += best[0] === best[1] ? 0 : 1;
  }
  return flips;
}
