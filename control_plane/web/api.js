// Talks to the control plane: REST, and server-sent events read with fetch, which, unlike
// EventSource, can carry the bearer token.

import { byId, show } from "./dom.js";

const TOKEN_KEY = "lectern-token";
const SILENCE_MS = 40000; // the server says something every 15 s
const STREAM_START_MS = 10000;

let asking = null;

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The control plane answered ${status}.`);
    this.status = status;
  }
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function getText(path) {
  return (await ask(path)).text();
}

export async function post(path) {
  return (await ask(path, { method: "POST" })).json();
}

async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    const headers = token ? { authorization: `Bearer ${token}`, ...options.headers } : options.headers;
    const response = await fetch(path, { cache: "no-store", ...options, headers });
    if (response.ok) return response;
    if (response.status !== 401) {
      throw new Refused(response.status, await response.json().catch(() => ({})));
    }
    if (token === sessionStorage.getItem(TOKEN_KEY)) await askForToken(token !== null);
  }
}

// One dialog, however many requests were refused at once.
function askForToken(wasWrong) {
  if (asking === null) {
    const dialog = byId("ask-token");
    show(byId("token-wrong"), wasWrong);
    byId("token").value = "";
    asking = new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        sessionStorage.setItem(TOKEN_KEY, byId("token").value.trim());
        asking = null;
        resolve();
      }, { once: true });
    });
    dialog.showModal();
  }
  return asking;
}

// Reads one stream until it ends or fails. Calls onOpen once, and onEvent(kind, data) for each event.
export async function follow(path, onOpen, onEvent) {
  const abort = new AbortController();
  let silence = setTimeout(() => abort.abort(), STREAM_START_MS);
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => abort.abort(), SILENCE_MS);
  };
  try {
    const response = await ask(path, { signal: abort.signal });
    onOpen();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      heard();
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) dispatch(block, onEvent);
    }
  } finally {
    clearTimeout(silence);
    abort.abort();
  }
}

function dispatch(block, onEvent) {
  let kind = "message";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data) onEvent(kind, JSON.parse(data));
}
