// @ts-check
// The end of a run's log: it follows while the run writes, and can be searched.

import { getText } from "../../api.js";
import { make, setText } from "../../dom.js";
import { count } from "../../format.js";

/** @import { ShownRun } from "../../types.d.ts" */

const LINES = 2000;

export class LogRoom {
  constructor() {
    this.text = "";
    this.top = 0;
    this.search = make("input", { type: "search", placeholder: "Find in the log" });
    this.search.setAttribute("aria-label", "Find in the log");
    this.follow = make("input", { type: "checkbox", checked: true });
    this.found = make("span", { className: "muted" });
    this.found.setAttribute("role", "status");
    this.log = make("pre", { className: "text log", tabIndex: 0 });
    this.log.setAttribute("aria-label", `The last ${LINES} lines of the log`);
    this.element = make(
      "div",
      {},
      make("div", { className: "toolbar" }, this.search, this.found,
        make("label", { className: "check" }, this.follow, "Follow")),
      this.log,
    );
    this.search.addEventListener("input", () => this.fill());
    this.follow.addEventListener("change", () => this.fill());
    this.log.addEventListener("scroll", () => this.onScroll(), { passive: true });
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
    this.text = "";
    this.search.value = "";
    this.follow.checked = true;
    this.fill();
  }

  /** @param {ShownRun} run */
  async load({ id }) {
    const text = await getText(`/runs/${id}/logs?tail=${LINES}`);
    if (text === this.text && text !== "") return;
    this.text = text;
    this.fill();
  }

  /** Shows the lines that the search finds, or all. */
  fill() {
    const wanted = this.search.value.toLowerCase();
    if (wanted === "") {
      setText(this.found, "");
      setText(this.log, this.text || "The trainer has not written anything yet.");
    } else {
      const lines = this.text.split("\n").filter((line) => line.toLowerCase().includes(wanted));
      setText(this.found, lines.length === 1 ? "1 line" : `${count(lines.length)} lines`);
      this.log.replaceChildren(...lines.flatMap((line) => marked(line, wanted)));
    }
    if (this.follow.checked) this.log.scrollTop = this.log.scrollHeight;
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
