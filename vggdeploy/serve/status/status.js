"use strict";

const at = (id) => document.getElementById(id);
const EVERY = 2000; // ms
const TONES = {
  READY: "good", LOADING: "doubt", UNLOADED: "doubt", DRAINING: "doubt", UNAVAILABLE: "bad",
  pass: "good", inconclusive: "doubt", unproven: "doubt", fail: "bad",
};
let token = "";

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text; // never markup: names come from bundles
  if (kind) made.className = kind;
  return made;
}

function facts(pairs) {
  const list = element("dl");
  for (const [name, text, wide] of pairs) {
    if (text === null || text === undefined || text === "") continue;
    const line = element("div", "", wide ? "wide" : "");
    line.append(element("dt", name), element("dd", String(text)));
    list.append(line);
  }
  return list;
}

function titled(name, word) {
  const head = element("h2", name);
  head.append(element("span", word, `mark ${TONES[word] || ""}`));
  return head;
}

const ms = (value) => (value === null || value === undefined ? null : `${value.toFixed(2)} ms`);
const moment = (text) => text && text.replace("T", " ").replace("Z", " UTC");
const percent = (value) => `${(100 * value).toFixed(2)} %`;

function proven({ verdict, numerical, bounds }) {
  return numerical && bounds && numerical !== bounds ? `${verdict} (numerical ${numerical}, bounds ${bounds})` : verdict;
}

function model(about) {
  const card = element("section", "", "card");
  const times = about.times || {};
  const proof = about.proof ? `${proven(about.proof)}: ${about.proof.told}` : null;
  card.append(titled(about.name, about.state), facts([
    ["variant", about.variant && `${about.variant} on ${about.device}`],
    ["since", moment(about.since)],
    ["bundle", about.digest && about.digest.slice(0, 12)],
    ["waiting", `${about.waiting} of ${about.limit}`],
    ["p50", ms(times.p50)],
    ["p99", times.p99 === null || times.p99 === undefined ? null : `${ms(times.p99)}, of ${times.answers} answers`],
    ["answered", about.answered],
    ["failed", about.failed],
    ["new versions taken", about.reloads],
    ["proof", proof, true],
    ["why", about.why, true],
  ]));
  return card;
}

function shadow(about) {
  at("shadow").hidden = !about;
  if (!about) return;
  const flips = about.flips;
  const may = about.verdict === "pass" ? "It may take over." : "It may not take over.";
  const card = at("shadow").querySelector(".card");
  card.replaceChildren(titled(`${about.shadow.model}, ${about.shadow.variant}`, about.verdict), facts([
    ["so", may],
    ["compared", about.compared],
    ["changed", flips && flips.flips],
    ["share changed, 95 % each", flips && `${percent(flips.lower)} to ${percent(flips.upper)}`],
    ["limit", percent(about.limit)],
    ["errors", about.errors],
    ["not asked, since callers waited", about.shed],
    ["repeated", about.repeated],
    ["its p50, at the lowest priority", ms(about.shadow.p50_ms)],
    ["since", moment(about.since)],
    ["why", about.reasons.join("; "), true],
  ]));
}

function cell(value) {
  return element("td", value === null || value === undefined ? "–" : value.toFixed(2));
}

function drift(about) {
  at("drift").hidden = !about;
  if (!about) return;
  const changed = about.statistics.filter((one) => one.alarm).map((one) => one.name);
  at("drift-told").textContent = changed.length
    ? `Requests have changed: ${changed.join(", ")}.` : "No change was found.";
  at("drift-told").className = changed.length ? "bad" : "good";
  at("drift").querySelector("tbody").replaceChildren(...about.statistics.map((one) => {
    const line = element("tr", "", one.alarm ? "alarm" : "");
    const head = element("th", one.name);
    head.scope = "row";
    line.append(head, cell(one.mean), cell(one.usual), element("td", String(one.observed)),
      element("td", `${Math.max(0, one.evidence).toFixed(1)} of ${one.enough.toFixed(1)}`));
    return line;
  }));
  at("drift-note").textContent = about.note;
}

function say(text) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", text !== "");
}

async function look() {
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const reply = await fetch("/status/data", { headers });
    at("token-form").hidden = reply.status !== 401;
    const found = await reply.json();
    if (!reply.ok) {
      say(`${found.error}: ${found.fix}`);
      return;
    }
    say("");
    at("server").textContent = `vggdeploy ${found.version}, since ${moment(found.since)}, ${found.ready ? "ready" : "not ready"}`;
    at("models").replaceChildren(...found.models.map(model));
    shadow(found.shadow);
    drift(found.drift);
  } catch {
    say("The server does not answer. Is it still running?");
  }
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  look();
});
look();
setInterval(() => { if (!document.hidden) look(); }, EVERY);
