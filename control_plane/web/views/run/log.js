// @ts-check
// A run's log: its last lines and every line that comes after them, to be searched, and the whole
// of it to download.

import { RequestFailed, follow, getBlob } from "../../api.js";
import { save } from "../../charts/download.js";
import { make, setText } from "../../dom.js";
import { count, size } from "../../format.js";

/** @import { ShownRun } from "../../types.d.ts" */

const LINES = 2000; // to begin with
const MAX_CHARACTERS = 1_000_000; // kept; the download has them all
const RETRY_MS = 2000;
const EMPTY = "The trainer has not written anything yet.";

export class LogRoom {
  constructor() {
    this.text = "";
    this.added = ""; // at the end of it, and not yet shown
    this.top = 0;
    this.frame = 0;
    this.id = "";
    /** @type {AbortController | null} of the stream */
    this.stream = null;
    /** @type {string | null} after which the stream goes on; null before the first line */
    this.position = null;
    this.search = make("input", { type: "search", placeholder: "Find in the log" });
    this.search.setAttribute("aria-label", "Find in the log");
    this.follow = make("input", { type: "checkbox", checked: true });
    this.found = make("span", { className: "muted" });
    this.found.setAttribute("role", "status");
    this.download = make("button", {
      type: "button",
      className: "quiet",
      textContent: "Download the whole log",
    });
    this.log = make("pre", { className: "text log", tabIndex: 0 });
    this.log.setAttribute("aria-label", "The end of the log");
    this.element = make(
      "div",
      {},
      make(
        "div",
        { className: "toolbar" },
        this.search,
        this.found,
        make("label", { className: "check" }, this.follow, "Follow"),
        this.download,
      ),
      this.log,
    );
    this.search.addEventListener("input", () => this.fill());
    this.follow.addEventListener("change", () => this.goToEnd());
    this.log.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.download.addEventListener("click", () => this.save());
  }

  /** Follows only while the end is in sight, however the user got there. */
  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.log;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < 40;
    if (!isAtEnd) this.follow.checked = false;
    else if (scrollTop > this.top) this.follow.checked = true;
    this.top = scrollTop;
  }

  clear() {
    this.leave();
    this.id = this.text = this.added = "";
    this.position = null;
    this.search.value = "";
    this.follow.checked = true;
    this.fill();
  }

  leave() {
    this.stream?.abort();
    this.stream = null;
  }

  /** @param {ShownRun} run */
  load({ id }) {
    if (this.stream !== null && this.id === id) return;
    this.id = id;
    this.read(id);
  }

  /**
   * Reads the stream until the room is left, from where it was cut off.
   *
   * @param {string} id
   */
  async read(id) {
    const stream = new AbortController();
    this.stream = stream;
    while (!stream.signal.aborted) {
      const from = this.position === null ? `tail=${LINES}` : `after=${this.position}`;
      if (this.position === null) this.text = this.added = "";
      try {
        await follow(
          `/runs/${id}/log/stream?${from}`,
          () => this.fill(),
          (kind, data, position) => this.take(kind, data, position),
          stream.signal,
        );
      } catch (error) {
        if (error instanceof RequestFailed && error.status === 404) break;
        // Otherwise the banner says if the connection is lost.
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
    if (this.stream === stream) this.stream = null;
  }

  /**
   * @param {string} kind
   * @param {any} data
   * @param {string} position after the event
   */
  take(kind, data, position) {
    if (position !== "") this.position = position;
    if (kind === "log") this.add(data.text);
    else if (kind === "cut") this.add(`[${size(data.bytes)} are left out here]\n`);
    else if (kind === "rewind") {
      this.text = "";
      this.added = "[the log begins anew]\n";
      this.fill();
    }
  }

  /** @param {string} text whole lines */
  add(text) {
    this.added += text;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const isAll = this.search.value === "" && this.text !== "";
      if (isAll && this.text.length + this.added.length < MAX_CHARACTERS) {
        this.log.append(this.added);
        this.text += this.added;
        this.added = "";
        this.goToEnd();
      } else this.fill();
    });
  }

  /** Shows the lines that the search finds, or all. */
  fill() {
    this.text += this.added;
    this.added = "";
    if (this.text.length > MAX_CHARACTERS) {
      const half = this.text.slice(-MAX_CHARACTERS / 2);
      this.text = half.slice(half.indexOf("\n") + 1);
    }
    const wanted = this.search.value.toLowerCase();
    if (wanted === "") {
      setText(this.found, "");
      setText(this.log, this.text || EMPTY);
    } else {
      const lines = this.text.split("\n").filter((line) => line.toLowerCase().includes(wanted));
      setText(this.found, lines.length === 1 ? "1 line" : `${count(lines.length)} lines`);
      this.log.replaceChildren(...lines.flatMap((line) => marked(line, wanted)));
    }
    this.goToEnd();
  }

  goToEnd() {
    if (this.follow.checked) this.log.scrollTop = this.log.scrollHeight;
  }

  async save() {
    const { id } = this;
    this.download.disabled = true;
    try {
      save(`${id}.log`, await getBlob(`/runs/${id}/log`));
    } catch (error) {
      setText(this.found, error instanceof Error ? error.message : String(error));
    } finally {
      this.download.disabled = false;
    }
  }
}

/**
 * Returns the line with what was searched for marked.
 *
 * @param {string} line
 * @param {string} wanted in lower case
 */
function marked(line, wanted) {
  const parts = [];
  let from = 0;
  for (;;) {
    const at = line.toLowerCase().indexOf(wanted, from);
    if (at < 0) break;
    parts.push(line.slice(from, at));
    parts.push(make("mark", { textContent: line.slice(at, at + wanted.length) }));
    from = at + wanted.length;
  }
  return [...parts, `${line.slice(from)}\n`];
}
