// Runs a job's variants with ONNX Runtime Web, in Node.js and in a page alike, and hands the raw answers back.
// Nothing is judged here: the process that started this compares the answers with the golden outputs.

const inNode = Boolean(globalThis.process?.versions?.node);
const address = inNode ? process.argv[2] : new URL(".", location.href).href;

async function ask(path, options) {
  const reply = await fetch(address + path, options);
  if (!reply.ok) throw new Error(`${path}: ${reply.status} ${await reply.text()}`);
  return reply;
}

const get = async (path) => (await ask(path)).arrayBuffer();
const send = (path, body = "") => ask(path, { method: "POST", body });
const text = (error) => String(error?.message ?? error);

async function instructionSets(job) {
  if (job.provider !== "webgpu") return ["WebAssembly"];
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error("this browser has no WebGPU adapter: apt-get install mesa-vulkan-drivers");
  return [adapter.info.architecture || adapter.info.vendor, ...(adapter.features.has("shader-f16") ? ["shader-f16"] : [])];
}

function tools(ort) {
  const browser = inNode ? null : navigator.userAgent.match(/Chrome\/([\d.]+)/)?.[1];
  return { "onnxruntime-web": ort.env.versions.web, ...(inNode ? { node: process.versions.node } : { chromium: browser }) };
}

// ONNX Runtime runs in WebAssembly, without a word, what WebGPU has no operator for: so it is asked for none of that first.
async function open(job, ort, model, index) {
  const settings = { executionProviders: [job.provider] };
  if (job.provider === "wasm") return ort.InferenceSession.create(model, settings);
  try {
    const strict = { ...settings, extra: { session: { disable_cpu_ep_fallback: "1" } } };
    return await ort.InferenceSession.create(model, strict);
  } catch {
    const session = await ort.InferenceSession.create(model, settings);
    await send(`remark/${index}`, `some of its operators ran in WebAssembly: ONNX Runtime Web has none for ${job.provider}`);
    return session;
  }
}

async function runVariant(job, ort, images, index) {
  const session = await open(job, ort, new Uint8Array(await get(`model/${index}`)), index);
  const shape = job.input.shape.slice(1);
  const size = shape.reduce((all, n) => all * n, 1);
  const names = job.outputs.map((output) => output.name);
  for (const [place, [start, stop]] of job.batches[index].entries()) {
    const rows = images.slice(start * size, stop * size);
    const feeds = { [job.input.name]: new ort.Tensor(job.input.dtype, rows, [stop - start, ...shape]) };
    const answers = await session.run(feeds, names);
    // slice: what is shared between threads cannot be sent.
    for (const [output, name] of names.entries()) await send(`answer/${index}/${place}/${output}`, answers[name].data.slice());
  }
  await session.release();
}

async function main() {
  const job = await (await ask("job")).json();
  const ort = await import(inNode ? job.library : `${address}scripts/${job.library.split("/").pop()}`);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = job.threads ?? 1;
  await send("about", JSON.stringify({ isa: await instructionSets(job), tools: tools(ort) }));
  const data = await get("images");
  const images = job.input.dtype === "uint8" ? new Uint8Array(data) : new Float32Array(data);
  for (const index of job.variants.keys()) {
    try {
      await runVariant(job, ort, images, index);
    } catch (error) {
      await send(`refused/${index}`, text(error));
    }
    await send(`finished/${index}`);
  }
}

main().catch((error) => send("failed", text(error)));
