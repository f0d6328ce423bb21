/** From what somebody drops to answers: files out of folders, and a few requests at a time. */

const AT_ONCE = 4;
const LEFT_OUT = /^(\.|Thumbs\.db$|desktop\.ini$)/i;

/** Files of a drop, those in folders included, each with the name it has below what was dropped; null for what cannot be read. */
export async function filesOfDrop(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  // All at once: the items are gone as soon as the event is over.
  const found = items.map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  const lists = [];
  for (const { entry, file } of found) {
    if (entry?.isDirectory) lists.push(await filesOfFolder(entry));
    else if (file) lists.push([{ file, name: file.name }]);
  }
  return lists.flat();
}

async function filesOfFolder(folder) {
  const files = [];
  const folders = [folder];
  while (folders.length) {
    const inner = folders.pop();
    const reader = inner.createReader();
    const unreadable = () => {
      files.push({ entry: null, name: `${inner.fullPath.slice(1)}/` });
      return [];
    };
    for (let batch; (batch = await promised(reader, "readEntries").catch(unreadable)).length; ) {
      for (const entry of batch) {
        if (entry.isDirectory) folders.push(entry);
        else files.push({ entry, name: entry.fullPath.slice(1) });
      }
    }
  }
  files.sort(byName);
  const fileOf = (entry) => entry && promised(entry, "file").catch(() => null);
  return Promise.all(files.map(async ({ entry, name }) => ({ file: await fileOf(entry), name })));
}

const promised = (object, method) => new Promise((resolve, reject) => object[method](resolve, reject));

const byName = (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true });

/** Files of an input; of a folder, with the names that they have in it, and in their order. */
export function filesOfInput(input) {
  const found = [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
  return input.webkitdirectory ? found.sort(byName) : found;
}

/** Whether a file in a folder is the system's and no photo. */
export const isHidden = ({ name }) => name.includes("/") && name.split("/").some((part) => LEFT_OUT.test(part));

/** What the server refuses, with its words. */
export class Refusal extends Error {
  constructor(status, said = {}) {
    super(said.message || `the server answered ${status}`);
    this.status = status;
    this.code = said.code || "";
  }
}

/** The server cannot be reached. */
export class Away extends Error {}

/**
 * Ask the server; wait and ask again while it has no room.
 * @param {string} address
 * @param {RequestInit} options
 * @param {() => void} [onBusy] called before each wait
 * @throws {Refusal|Away|DOMException} the last when the request was cancelled
 */
export async function ask(address, options = {}, onBusy = () => {}) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(address, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Away();
    }
    if (answer.ok) return answer;
    if (answer.status !== 503) throw new Refusal(answer.status, (await answer.json().catch(() => ({}))).error);
    onBusy();
    await pause(Math.min(30, Number(answer.headers.get("Retry-After")) || 1) * 1000, options.signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const cancelled = () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", cancelled);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", cancelled, { once: true });
  });
}

/** A line of photos; a few are with the server at a time. */
export class Queue {
  /** @param {(photo, signal: AbortSignal) => Promise<void>} send must not throw */
  constructor(send) {
    this.send = send;
    this.waiting = [];
    this.running = 0;
    this.held = false;
    this.control = new AbortController();
  }

  add(photos) {
    for (const photo of photos) this.waiting.push(photo);
    this.fill();
  }

  /** Send no more until ``resume``; what is under way goes on. */
  hold() {
    this.held = true;
  }

  resume() {
    this.held = false;
    this.fill();
  }

  /** Take back everything; the photos that were still waiting. */
  cancel() {
    const dropped = this.waiting;
    this.waiting = [];
    this.control.abort();
    this.control = new AbortController();
    this.held = false;
    return dropped;
  }

  fill() {
    while (!this.held && this.running < AT_ONCE && this.waiting.length) this.run(this.waiting.shift());
  }

  async run(photo) {
    this.running += 1;
    await this.send(photo, this.control.signal);
    this.running -= 1;
    this.fill();
  }
}
