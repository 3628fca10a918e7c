// Files of the site, each compared with its SHA-256 before anything else sees a byte of it.

import { VggdeployError } from "./errors.js";

const AGAIN = "upload the site again, every file of it";

export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new VggdeployError(
      "this page came over plain http, where a browser computes no hashes",
      "open it over https, or on the machine that serves it: http://127.0.0.1",
    );
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function download(url, name, size, onBytes) {
  let reply;
  try {
    reply = await fetch(url, { credentials: "same-origin", referrerPolicy: "no-referrer" });
  } catch {
    throw new VggdeployError(`${name} could not be loaded`, "check the connection, then load the page again");
  }
  if (!reply.ok) throw new VggdeployError(`${name} is not there (HTTP ${reply.status})`, AGAIN);
  const parts = [];
  let length = 0;
  const reader = reply.body.getReader();
  for (let step = await read(reader, name); !step.done; step = await read(reader, name)) {
    length += step.value.length;
    if (size !== null && length > size) throw new VggdeployError(`${name} is longer than it was packaged`, AGAIN);
    parts.push(step.value);
    onBytes(step.value.length);
  }
  if (size !== null && length < size) throw new VggdeployError(`${name} is cut short: ${length} of ${size} bytes`, AGAIN);
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function read(reader, name) {
  try {
    return await reader.read();
  } catch {
    throw new VggdeployError(`${name} broke off while it was loaded`, "check the connection, then load the page again");
  }
}

/** The bytes at a URL, which must have this hash where one is given. */
export async function fetchChecked(url, name, { sha256: wanted, size = null }, onBytes = () => {}) {
  const bytes = await download(url, name, size, onBytes);
  if (wanted && (await sha256(bytes)) !== wanted) {
    throw new VggdeployError(`${name} was altered: its SHA-256 is not the one it was packaged with`, AGAIN);
  }
  return bytes;
}

/** The files of a site, by the names and hashes that its site.json gives. */
export class Files {
  constructor(base, records, onBytes) {
    this.base = base;
    this.records = new Map(records.map((record) => [record.path, record]));
    this.onBytes = onBytes;
    this.reading = new Map();
  }

  /** The bytes of a file, which is loaded once however often it is asked for. */
  async read(path) {
    const record = this.records.get(path);
    if (!record) throw new VggdeployError(`site.json has no hash for ${path}`, AGAIN);
    if (!this.reading.has(path)) {
      this.reading.set(path, fetchChecked(new URL(path, this.base), path, record, this.onBytes));
    }
    return this.reading.get(path);
  }
}
