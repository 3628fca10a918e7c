// A model that vggdeploy packaged for the web: load it, and classify or embed pictures on the visitor's own device.
// `load` gives a model only after the device has repeated the known answers that travel with it.

import { candidates, checkBrowser, reason, Session } from "./lib/backends.js";
import { decode } from "./lib/decode.js";
import { VggdeployError } from "./lib/errors.js";
import { fetchChecked, Files } from "./lib/files.js";
import { prepare } from "./lib/prepare.js";
import { checkPreparing, countFlips, prove, readGolden, repeated } from "./lib/proof.js";

export { VggdeployError };

const SCORES = ["logits", "probabilities"];
const open = new WeakMap(); // model → what it runs with

/**
 * Load the site at `address`, and prove it here.
 * @see vggdeploy.d.ts
 */
export async function load(address = "./", { digest = "", backends = ["webgpu", "wasm"], onProgress = () => {} } = {}) {
  let underWay = true; // a file may still be on its way when another one has ended it all
  const tell = (step) => underWay && onProgress(step);
  try {
    return await loaded(new URL(address, document.baseURI), digest, backends, tell);
  } finally {
    underWay = false;
  }
}

async function loaded(base, digest, backends, tell) {
  checkBrowser();
  const text = await fetchChecked(new URL("site.json", base), "site.json", { sha256: digest });
  const site = readSite(text);
  let bytes = 0;
  const files = new Files(base, site.files, (count) => tell({ stage: "loading", bytes: (bytes += count) }));
  tell({ stage: "loading", bytes });
  const [preparing, close] = await checkPreparing(files, site);
  if (preparing.reasons.length) {
    throw new VggdeployError("this browser prepares pictures otherwise than the model was trained on", "use another browser", {
      reports: [], preparing, reasons: preparing.reasons,
    });
  }
  const golden = await readGolden(files, site, "golden");
  const stress = site.stress.count ? await readGolden(files, site, "stress") : null;
  const reports = [];
  let best = null;
  for (const candidate of await candidates(backends)) {
    let images = 0;
    const onImage = async () => {
      tell({ stage: "proving", backend: candidate.title, images: ++images, of: site.golden.count + site.stress.count });
      await new Promise((resume) => setTimeout(resume)); // so that the page can be drawn
    };
    const fastest = best?.report.milliseconds ?? Infinity;
    const tried = await tryBackend(files, site, candidate, golden, stress, fastest, onImage);
    reports.push(tried.report);
    const better = tried.report.passed && tried.report.milliseconds < fastest;
    await (better ? best : tried)?.session?.close();
    if (better) best = tried;
  }
  if (!best) throw unproven(reports, preparing);
  preparing.flips = await countFlips(best.session, close);
  return opened(site, best, reports, preparing, golden);
}

function unproven(reports, preparing) {
  if (!reports.length) return new VggdeployError("this browser has none of the backends that were asked for", "allow wasm");
  const reasons = reports.flatMap(({ title, reasons: why }) => why.map((text) => `${title}: ${text}`));
  const message = "this device does not compute what the trained model computes";
  const fix = "try another browser or device, and tell whoever runs this page";
  return new VggdeployError(message, fix, { reports, preparing, reasons });
}

function readSite(bytes) {
  try {
    const site = JSON.parse(new TextDecoder().decode(bytes));
    if (site.schema_version === 1 && site.files.every(({ sha256 }) => /^[0-9a-f]{64}$/.test(sha256))) return site;
  } catch {
    // told below
  }
  throw new VggdeployError("site.json is not one that this page reads", "upload the site again, every file of it");
}

async function tryBackend(files, site, candidate, golden, stress, fastest, onImage) {
  const { name, title } = candidate;
  let session = null;
  try {
    session = await Session.open(files, site, candidate);
  } catch (error) {
    if (error instanceof VggdeployError) throw error; // a file that is not what was packaged: nothing is tried with it
    const proof = { passed: false, slower: false, reasons: [reason(error)], outputs: [], stress: [], milliseconds: null };
    return { session, answers: [], report: { name, title, whole: false, ...proof } };
  }
  const [proof, answers] = await prove(session, golden, stress, fastest, onImage);
  return { session, answers, report: { name, title, whole: session.whole, ...proof } };
}

function opened(site, { session, answers, report }, reports, preparing, golden) {
  const model = Object.freeze({
    name: site.name, variant: site.variant, labels: Object.freeze(site.labels), backend: report.name, title: report.title,
    milliseconds: report.milliseconds, proof: Object.freeze({ reports, preparing, images: site.golden.count + site.stress.count }),
    outputs: Object.freeze(site.outputs.map(({ name }) => name)),
  });
  open.set(model, { site, session, answers, golden, asked: 0, failed: null, last: Promise.resolve() });
  return model;
}

/** Run one picture, and beside it a known one: no answer leaves before that one was right again. */
async function answer(model, picture) {
  const state = open.get(model);
  if (!state) throw new VggdeployError("this is not a model that load gave", "await load() first");
  const pixels = prepare(await decode(picture, state.site.preprocess), state.site.preprocess);
  // One after another: a session takes one call at a time.
  const turn = state.last.then(async () => {
    if (state.failed) throw state.failed;
    try {
      const started = performance.now();
      const outputs = await state.session.run(pixels);
      const milliseconds = performance.now() - started;
      const index = state.asked++ % state.golden.count;
      const reasons = await repeated(state.session, state.golden, state.answers, index);
      if (reasons.length) throw new VggdeployError(reasons[0]);
      return { outputs, milliseconds };
    } catch (error) {
      const told = `${model.title} stopped computing what the trained model computes`;
      const proof = { reports: [], preparing: null, reasons: [reason(error)] };
      state.failed = new VggdeployError(told, "load the page again", proof);
      throw state.failed;
    }
  });
  state.last = turn.catch(() => {});
  return turn;
}

function softmax(logits) {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const shifted = logits.map((value) => Math.exp(value - highest));
  const sum = shifted.reduce((a, b) => a + b, 0);
  return shifted.map((value) => value / sum);
}

/** The most probable classes of a picture, best first. */
export async function classify(model, picture, { top = 5 } = {}) {
  const { outputs, milliseconds } = await answer(model, picture);
  const scores = outputs.probabilities ?? (outputs.logits && softmax(outputs.logits));
  if (!scores) throw new VggdeployError("this model has no class scores", "take its features with embed");
  const order = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b).slice(0, top);
  const predictions = order.map((index) => ({ label: model.labels[index] ?? String(index), index, probability: scores[index] }));
  return { predictions, milliseconds };
}

/** One output of a picture as a vector: a feature map is averaged over all positions. */
export async function embed(model, picture, { output = "", normalise = false } = {}) {
  const features = model.outputs.filter((name) => !SCORES.includes(name));
  const usual = features.includes("fc7") ? "fc7" : features.length === 1 ? features[0] : "";
  const name = output || usual;
  if (!model.outputs.includes(name)) {
    const known = (features.length ? features : model.outputs).join(", ");
    const told = name ? `this model has no output ${name}` : "it has to be said which output is the vector";
    throw new VggdeployError(told, `name one: ${known}`);
  }
  const { outputs } = await answer(model, picture);
  const { shape } = open.get(model).site.outputs.find((spec) => spec.name === name);
  const values = shape.length === 3 ? averaged(outputs[name], shape) : outputs[name];
  return normalise ? unitLength(values) : values;
}

function averaged(map, [channels, height, width]) {
  const size = height * width;
  const mean = (values) => values.reduce((a, b) => a + b, 0) / size;
  return Float32Array.from({ length: channels }, (_, c) => mean(map.subarray(c * size, (c + 1) * size)));
}

function unitLength(vector) {
  const length = Math.sqrt(vector.reduce((all, value) => all + value * value, 0));
  return length > 0 ? vector.map((value) => value / length) : vector;
}
