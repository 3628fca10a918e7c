// The page: the verdict first, then pictures. All that computes is in vggdeploy.js.

import { classify, load } from "./vggdeploy.js";
import { general, worst } from "./lib/judge.js";

const at = (id) => document.getElementById(id);
const MARKS = { right: "M5 13l5 5L19 7", wrong: "M6 6l12 12M18 6L6 18", waiting: "M12 3a9 9 0 1 0 9 9" };
let model = null;
let number = 0; // of the newest picture: an older answer that comes later is not shown

/** What the page says at its top. A text that stands there already is not written again: screen readers would repeat it. */
function verdict(kind, headline, told, reasons = [], fix = "") {
  at("verdict").className = kind;
  at("mark").setAttribute("d", MARKS[kind]);
  for (const [id, text] of [["headline-text", headline], ["sentence", told]]) {
    if (at(id).textContent !== text) at(id).textContent = text;
  }
  at("reasons").replaceChildren(...reasons.map((text) => element("li", text)));
  at("reasons").hidden = reasons.length === 0;
  at("fix").textContent = fix && sentence(fix);
  at("fix").hidden = !fix;
  at("progress").hidden = at("amount").hidden = kind !== "waiting";
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Names of files keep their small letter. */
const sentence = (text) => `${/^[a-z]+[ ,:]/.test(text) ? text[0].toUpperCase() : text[0]}${text.slice(1)}.`;
const ms = (value) => `${general(value, 3)} ms`;

function showProof({ reports, preparing }) {
  at("backends").replaceChildren(...reports.map((report) => {
    const row = document.createElement("tr");
    const head = element("th", report.title);
    head.scope = "row";
    const told = report.passed ? "proven" : report.slower ? "slower, so not used" : `not proven: ${report.reasons.join("; ")}`;
    const where = report.whole || !report.outputs.length ? "" : " (a part of it runs in WebAssembly)";
    row.append(head, element("td", told + where));
    row.append(element("td", report.outputs.length ? worst(report).toExponential(1) : "–"));
    row.append(element("td", report.milliseconds === null ? "–" : ms(report.milliseconds)));
    return row;
  }));
  if (preparing && !preparing.files) {
    at("preparing").textContent = "The bundle is older than sample files, so how this browser decodes pictures was not compared.";
  } else if (preparing) {
    const changed = preparing.flips ? `${preparing.flips} of them got another class` : "none of them got another class";
    const close = preparing.within ? ` ${preparing.within} JPEG files came within two of 255 levels of it; ${changed}.` : "";
    at("preparing").textContent =
      `Of ${preparing.files} sample files, this browser prepared ${preparing.exact} to the very bits of the training.${close}`;
    at("refused").replaceChildren(...preparing.refused.map((text) => element("li", `Refused: ${text}.`)));
  }
  at("details").hidden = false;
}

function right() {
  const { reports, images } = model.proof;
  const mine = reports.find((report) => report.title === model.title);
  const others = reports.filter((report) => report !== mine);
  const rest = others.map((report) =>
    report.passed || report.slower
      ? `${report.title} was slower (${ms(report.milliseconds)})`
      : `${report.title} was not proven, and is not used`);
  const used = `${model.title} is used: ${ms(model.milliseconds)} a picture.${rest.length ? ` ${rest.join("; ")}.` : ""}`;
  verdict(
    "right",
    "Proven on this device",
    `${images} known pictures got the answers of the original model, up to a difference of ${worst(mine).toExponential(1)}. ${used}`,
  );
}

function wrong(error) {
  model = null;
  number += 1;
  stopCamera();
  at("work").hidden = true;
  at("result").hidden = true;
  at("labels").replaceChildren();
  const fix = error.fix ?? "load the page again";
  verdict("wrong", "Not proven: no answers here", sentence(String(error.message ?? error)), plainReasons(error.proof), fix);
  if (error.proof?.reports?.length) showProof(error.proof);
}

/** Why, for a visitor; the measured limits stand in the table below. */
function plainReasons(proof) {
  const reports = (proof?.reports ?? []).filter((report) => !report.slower);
  if (!reports.length) return (proof?.reasons ?? []).map(sentence);
  return reports.map((report) => {
    const far = report.outputs.length ? worst(report) : NaN;
    const off = `its answers to known pictures are off by ${far.toExponential(1)} of their size`;
    return `${report.title}: ${Number.isFinite(far) ? off : report.reasons[0]}.`;
  });
}

function progress(step) {
  const bar = at("progress");
  if (step.stage === "loading") {
    bar.removeAttribute("value");
    verdict("waiting", "Loading the model", "Every file is compared with its hash.");
    at("amount").textContent = `${(step.bytes / 1e6).toFixed(1)} MB`;
  } else {
    bar.max = step.of;
    bar.value = step.images;
    verdict("waiting", "Checking this device", `${step.backend} is asked for answers that are known.`);
    at("amount").textContent = `${step.images} of ${step.of} known pictures`;
  }
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", failed);
}

function answerRow({ label, probability }) {
  const item = document.createElement("li");
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = probability;
  bar.setAttribute("aria-label", `probability of ${label}`);
  item.append(element("span", label, "name"), element("span", `${(100 * probability).toFixed(1)} %`, "share"), bar);
  return item;
}

async function answer(picture) {
  const mine = ++number;
  at("result").hidden = true;
  say("Looking at it …");
  try {
    const { predictions, milliseconds } = await classify(model, picture);
    if (mine !== number) return;
    at("labels").replaceChildren(...predictions.map(answerRow));
    at("about").textContent =
      `${model.name}, ${model.variant}, computed here by ${model.title} in ${ms(milliseconds)}. A known picture beside it was right again.`;
    at("result").hidden = false;
    say(`${predictions[0].label}: ${(100 * predictions[0].probability).toFixed(1)} %`);
  } catch (error) {
    if (error.proof) wrong(error);
    else if (mine === number) say(sentence(`${error.message}${error.fix ? `: ${error.fix}` : ""}`), true);
  }
}

function choose(file) {
  if (!file || !model) return;
  stopCamera();
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `the chosen picture, ${file.name || "pasted"}`;
  preview.hidden = false;
  document.querySelector("#invitation strong").textContent = "Choose another picture";
  answer(file);
}

async function startCamera() {
  try {
    if (!navigator.mediaDevices) throw new Error();
    at("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    say("No camera can be used here: it is missing, forbidden, or the page came over plain http.", true);
    return;
  }
  at("video").hidden = at("shoot").hidden = false;
  at("camera").hidden = true;
  await at("video").play();
  at("shoot").focus();
}

function stopCamera() {
  for (const track of at("video").srcObject?.getTracks() ?? []) track.stop();
  at("video").srcObject = null;
  at("video").hidden = at("shoot").hidden = true;
  at("camera").hidden = false;
}

at("file").addEventListener("change", () => { choose(at("file").files[0]); at("file").value = ""; });
at("camera").addEventListener("click", startCamera);
at("shoot").addEventListener("click", () => answer(at("video")));
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  choose([...event.clipboardData.files].find((each) => each.type.startsWith("image/")));
});

try {
  const digest = document.querySelector('meta[name="vggdeploy-digest"]').content;
  model = await load("./", { digest, onProgress: progress });
  showProof(model.proof);
  right();
  at("work").hidden = false;
} catch (error) {
  wrong(error);
}
