"use strict";

const at = (id) => document.getElementById(id);
const STAGES = {
  receive: "upload, as the server saw it",
  decode: "decode and resize",
  queue: "wait for a batch",
  compute: "compute",
  total: "in the server",
  seen: "from here and back",
};
let token = "";
let number = 0; // of the newest request: an older answer that comes later is not shown

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

function row(name, ms) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const value = document.createElement("td");
  value.textContent = `${ms.toFixed(2)} ms`;
  line.append(head, value);
  return line;
}

function answer(prediction) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = prediction.label;
  const share = document.createElement("span");
  share.className = "share";
  share.textContent = `${(100 * prediction.probability).toFixed(1)} %`;
  const track = document.createElement("div");
  track.className = "track";
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.style.width = `${100 * prediction.probability}%`;
  track.append(bar);
  item.append(name, share, track);
  return item;
}

function show(found, seen) {
  at("labels").replaceChildren(...found.predictions.map(answer));
  const times = { ...found.time_ms, seen };
  at("times").tBodies[0].replaceChildren(...Object.entries(times).map(([key, ms]) => row(STAGES[key] || key, ms)));
  const batch = found.batch === 1 ? "computed alone" : `computed in a batch of ${found.batch}`;
  at("about").textContent = `${found.model}, ${found.variant}; ${batch}; request ${found.request_id}`;
  at("result").hidden = false;
  const best = found.predictions[0];
  say(`${best.label}: ${(100 * best.probability).toFixed(1)} %`);
}

function picture(file) {
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `the chosen image, ${file.name || "pasted"}`;
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; }; // a format that the server knows and this browser does not
  document.querySelector("#invitation strong").textContent = "Choose another image";
}

let last = null;
async function classify(file) {
  if (!file) return;
  last = file;
  const mine = ++number;
  picture(file);
  at("result").hidden = true;
  say("Looking at it …");
  const started = performance.now();
  try {
    const asked = new URLSearchParams({ top: 5 });
    if (!at("choice").hidden) asked.set("model", at("models").value);
    const reply = await fetch(`/classify?${asked}`, {
      method: "POST", body: file, headers: { "Content-Type": "application/octet-stream", ...headers() },
    });
    const found = await reply.json();
    if (mine !== number) return;
    at("token-form").hidden = reply.status !== 401;
    if (reply.status === 401) at("token").focus();
    if (reply.ok) show(found, performance.now() - started);
    else say(found.fix ? `${found.error}: ${found.fix}` : found.error, true);
  } catch {
    if (mine === number) say("The server does not answer. Is it still running?", true);
  }
}

async function describe() {
  try {
    const reply = await fetch("/v2/repository/index", { method: "POST", headers: headers() });
    at("token-form").hidden = reply.status !== 401;
    if (!reply.ok) return;
    const names = (await reply.json()).map((each) => each.name);
    at("model").textContent = names.length === 1 ? `The model is ${names[0]}.` : `One of ${names.length} models answers.`;
    at("models").replaceChildren(...names.map((name) => new Option(name, name)));
    at("choice").hidden = names.length === 1;
  } catch { /* the first image will tell */ }
}

at("file").addEventListener("change", () => { classify(at("file").files[0]); at("file").value = ""; });
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  describe();
  if (last) classify(last);
});
at("models").addEventListener("change", () => { if (last) classify(last); });
const drop = at("drop");
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  classify(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) classify(file);
});
describe();
