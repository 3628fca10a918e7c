// ONNX Runtime Web on what the visitor's device has: its GPU by WebGPU, its CPU by WebAssembly.

import { VggdeployError } from "./errors.js";

// A function that makes a 128-bit vector: what a browser without WebAssembly's SIMD refuses.
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);
const MAX_THREADS = 4; // as ONNX Runtime Web itself has it: half of the cores, four at most
const PATIENCE_MS = 60_000; // iOS has let a threaded start hang for ever (onnxruntime issue 11679), and drivers hang, too

/** Raises a VggdeployError where this browser cannot run the site at all. */
export function checkBrowser() {
  const update = "update the browser: those of 2021 and later have it (Safari from 16.4)";
  if (typeof WebAssembly !== "object") throw new VggdeployError("this browser has no WebAssembly, or it is switched off", update);
  if (!WebAssembly.validate(SIMD)) throw new VggdeployError("this browser's WebAssembly has no SIMD instructions", update);
  if (typeof DecompressionStream !== "function") throw new VggdeployError("this browser is too old for this page", update);
}

/** What can be tried here: `{ name, title, threads }`, the least demanding first. */
export async function candidates(allowed) {
  const found = [];
  if (allowed.includes("wasm")) {
    found.push({ name: "wasm", title: "WebAssembly", threads: 1 });
    const threads = Math.min(MAX_THREADS, Math.ceil((navigator.hardwareConcurrency || 1) / 2));
    if (globalThis.crossOriginIsolated && threads > 1) {
      found.push({ name: "wasm", title: `WebAssembly on ${threads} threads`, threads });
    }
  }
  if (allowed.includes("webgpu") && typeof WebAssembly.Suspending === "function" && (await adapter())) {
    found.push({ name: "webgpu", title: "WebGPU", threads: 1 });
  }
  return found;
}

async function adapter() {
  try {
    return await navigator.gpu?.requestAdapter();
  } catch {
    return null;
  }
}

/** A copy of ONNX Runtime Web of its own, from bytes whose hashes were checked: no address is read a second time. */
async function openRuntime(files, paths, threads) {
  const [script, binary] = await Promise.all([files.read(paths.script), files.read(paths.binary)]);
  const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const ort = await import(address); // its threads load the same address later, so it stays
  ort.env.logLevel = "fatal";
  ort.env.wasm.wasmBinary = binary.buffer;
  ort.env.wasm.numThreads = threads;
  return ort;
}

// ONNX Runtime runs in WebAssembly, without a word, what WebGPU has no operator for: so it is asked for none of that first.
async function createSession(ort, provider, bytes) {
  const options = { executionProviders: [provider] };
  if (provider === "wasm") return [await ort.InferenceSession.create(bytes, options), true];
  try {
    const strict = { ...options, extra: { session: { disable_cpu_ep_fallback: "1" } } };
    return [await ort.InferenceSession.create(bytes, strict), true];
  } catch {
    return [await ort.InferenceSession.create(bytes, options), false];
  }
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${PATIENCE_MS / 1000} s`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What went wrong inside the runtime, in a line. Emscripten throws numbers, too. */
export function reason(error) {
  const text = String(error?.message ?? error).split("\n")[0].trim() || "it did not say why";
  return /out of memory|memory access out of bounds|allocation failed/i.test(text) ? `the memory was not enough (${text})` : text;
}

/** One model on one backend. */
export class Session {
  constructor(ort, inner, candidate, site, whole) {
    this.ort = ort;
    this.inner = inner;
    this.site = site;
    this.candidate = candidate;
    this.whole = whole; // whether all of it runs on the backend that it is named for
  }

  static async open(files, site, candidate) {
    const ort = await openRuntime(files, site.runtime[candidate.name], candidate.threads);
    const model = await files.read(site.model);
    const opened = createSession(ort, candidate.name, model);
    const [inner, whole] = await within(opened, "opening the model");
    return new Session(ort, inner, candidate, site, whole);
  }

  /** One picture's pixels → output name → its values: as many as they have to be, and all of them finite. */
  async run(pixels) {
    const { input, outputs } = this.site;
    const names = outputs.map((output) => output.name);
    const feeds = { [input.name]: new this.ort.Tensor("uint8", pixels, [1, ...input.shape]) };
    const answers = await within(this.inner.run(feeds, names), "one picture");
    const found = {};
    for (const { name, shape } of outputs) {
      const values = Float32Array.from(answers[name].data); // a copy: what is shared between threads is used again
      const size = shape.reduce((all, n) => all * n, 1);
      if (values.length !== size) throw new VggdeployError(`'${name}' has ${values.length} values, not ${size}`);
      if (!values.every(Number.isFinite)) throw new VggdeployError(`it gave a NaN or infinity in '${name}'`);
      found[name] = values;
    }
    return found;
  }

  async close() {
    try {
      await this.inner.release();
    } catch {
      // what is broken already is not needed any more
    }
  }
}
