// @ts-check
// Requests to the control plane. Server-sent events are read with fetch because, unlike
// EventSource, it can send the bearer token.

import { byId, show } from "./dom.js";

/** @import { Problem } from "./types.d.ts" */

const TOKEN_KEY = "lectern-token";
const MAX_SILENCE_MS = 40000; // the server sends at least a ping every 15 s
const STREAM_START_MS = 10000;

/** @type {Promise<void> | null} */
let tokenEntered = null;

/**
 * Keeps a token that stands behind # in the page's address (`lectern up` prints it there) for this
 * tab, and takes it out of the address bar and of the history.
 */
function takeTokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!location.hash.startsWith("#token=") || !token) return;
  sessionStorage.setItem(TOKEN_KEY, token);
  history.replaceState(null, "", `${location.pathname}${location.search}#/`);
  const dialog = document.querySelector("dialog#ask-token[open]");
  if (!(dialog instanceof HTMLDialogElement)) return;
  byId("token", HTMLInputElement).value = token;
  dialog.close();
}

/** @returns {boolean} whether this tab has a token, right or wrong */
export function hasToken() {
  return sessionStorage.getItem(TOKEN_KEY) !== null;
}

takeTokenFromAddress();
addEventListener("hashchange", takeTokenFromAddress);

/** An answer with an error status; the message is the `detail` of its problem body. */
export class RequestFailed extends Error {
  /**
   * @param {number} status
   * @param {Partial<Problem>} problem
   */
  constructor(status, problem) {
    super(problem.detail || problem.title || `The control plane answered with status ${status}.`);
    this.status = status;
    this.errors = problem.errors ?? [];
  }
}

/**
 * @template T
 * @param {string} path
 * @returns {Promise<T>} the JSON body
 */
export async function get(path) {
  return (await request(path)).json();
}

/**
 * @param {string} path
 * @returns {Promise<string>}
 */
export async function getText(path) {
  return (await request(path)).text();
}

/**
 * @param {string} path
 * @param {object} [body] sent as JSON
 * @param {string} [key] of which a repeated request has the same, so that it creates nothing new
 * @returns {Promise<any>} the JSON body of the answer
 */
export async function post(path, body, key) {
  const sent = body === undefined ? undefined : JSON.stringify(body);
  /** @type {Record<string, string>} */
  const headers = key === undefined ? {} : { "idempotency-key": key };
  return (await request(path, { method: "POST", body: sent, headers })).json();
}

/** Returns what no other request has as its key. (crypto.randomUUID is only there over https.) */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {string} path
 * @param {object} body sent as JSON
 * @returns {Promise<any>} the JSON body of the answer
 */
export async function patch(path, body) {
  return (await request(path, { method: "PATCH", body: JSON.stringify(body) })).json();
}

/**
 * @param {string} path
 * @returns {Promise<Blob>}
 */
export async function getBlob(path) {
  return (await request(path)).blob();
}

/** @param {string} path */
export async function remove(path) {
  await request(path, { method: "DELETE" });
}

/**
 * Returns the response; asks the user for the token as long as the control plane wants another.
 * Throws RequestFailed on any other error status, and another Error if there is no answer.
 *
 * @param {string} path
 * @param {RequestInit & {headers?: Record<string, string>}} [options]
 */
async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN_KEY);
    /** @type {Record<string, string>} */
    const headers = { ...options.headers };
    if (token) headers.authorization = `Bearer ${token}`;
    if (options.body) headers["content-type"] = "application/json";
    const sent = fetch(path, { cache: "no-store", ...options, headers });
    const response = await sent.catch((cause) => {
      throw new Error("The control plane is not answering.", { cause });
    });
    if (response.ok) return response;
    if (response.status !== 401) {
      throw new RequestFailed(response.status, await response.json().catch(() => ({})));
    }
    if (token === sessionStorage.getItem(TOKEN_KEY)) await askForToken(token !== null);
  }
}

/**
 * Resolves when the user has entered a token. Requests that fail at the same time share one dialog.
 *
 * @param {boolean} wasWrong
 */
function askForToken(wasWrong) {
  if (tokenEntered === null) {
    const dialog = byId("ask-token", HTMLDialogElement);
    const input = byId("token", HTMLInputElement);
    show(byId("token-wrong"), wasWrong);
    input.value = "";
    tokenEntered = new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        sessionStorage.setItem(TOKEN_KEY, input.value.trim());
        tokenEntered = null;
        resolve();
      }, { once: true });
    });
    dialog.showModal();
  }
  return tokenEntered;
}

/** @typedef {(kind: string, data: any, id: string) => void} OnEvent id: "" if it has none */

/**
 * Reads one event stream until it ends or fails.
 *
 * @param {string} path
 * @param {() => void} onOpen called once, when the stream has begun
 * @param {OnEvent} onEvent
 * @param {AbortSignal} [signal] ends it
 */
export async function follow(path, onOpen, onEvent, signal) {
  const abort = new AbortController();
  signal?.addEventListener("abort", () => abort.abort(), { once: true });
  let timer = setTimeout(() => abort.abort(), STREAM_START_MS);
  const waitAnew = () => {
    clearTimeout(timer);
    timer = setTimeout(() => abort.abort(), MAX_SILENCE_MS);
  };
  try {
    const response = await request(path, { signal: abort.signal });
    onOpen();
    if (response.body === null) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      waitAnew();
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) dispatch(block, onEvent);
    }
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
}

/**
 * @param {string} block one event, as lines
 * @param {OnEvent} onEvent
 */
function dispatch(block, onEvent) {
  let kind = "message";
  let data = "";
  let id = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
    else if (line.startsWith("id: ")) id = line.slice(4);
  }
  if (data) onEvent(kind, JSON.parse(data), id);
}
