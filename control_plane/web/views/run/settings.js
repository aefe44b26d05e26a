// @ts-check
// The settings of a run, section by section; those that differ from the defaults are marked.

import { make, setText } from "../../dom.js";
import { defaultOf, loadSchemas, settingText } from "../lists/settings.js";

/** @import { RunDetail, ShownRun } from "../../types.d.ts" */

export class SettingsRoom {
  constructor() {
    this.shown = "";
    this.onlyChanged = make("input", { type: "checkbox" });
    this.count = make("p", { className: "muted" });
    this.body = make("div", { className: "settings" });
    this.element = make(
      "div",
      {},
      make("div", { className: "toolbar" }, this.count,
        make("label", { className: "check" }, this.onlyChanged, "Only what differs")),
      this.body,
    );
    this.onlyChanged.addEventListener("change", () =>
      this.body.classList.toggle("only-changed", this.onlyChanged.checked));
  }

  clear() {
    this.shown = "";
    this.body.replaceChildren();
  }

  /**
   * @param {ShownRun} run
   * @param {RunDetail | null} detail
   */
  async load(run, detail) {
    if (detail === null) return;
    await loadSchemas();
    const text = JSON.stringify([detail.spec, detail.settings]);
    if (text === this.shown) return;
    this.shown = text;
    const changed = Object.keys(detail.settings).length;
    setText(this.count, `${changed} settings differ from the defaults; they are marked.`);
    this.body.replaceChildren(...tablesOf(detail.spec, detail.settings));
  }
}

/**
 * Returns one table per section of the spec.
 *
 * @param {Record<string, any>} spec
 * @param {Record<string, any>} changed
 */
function tablesOf(spec, changed) {
  /** @type {Map<string, [string, any][]>} */
  const sections = new Map([["run", []]]);
  for (const [name, value] of Object.entries(spec)) {
    const isSection = value !== null && typeof value === "object" && !Array.isArray(value);
    if (isSection) sections.set(name, leaves(value, `${name}.`));
    else sections.get("run")?.push([name, value]);
  }
  return [...sections].map(([section, rows]) => {
    const lines = rows.map(([path, value]) => newLine(path, value, path in changed));
    const isSame = !rows.some(([path]) => path in changed);
    const caption = make("caption", { textContent: section === "run" ? "The run" : section });
    return make("table", { className: isSame ? "same" : "" }, caption, make("tbody", {}, ...lines));
  });
}

/**
 * @param {Record<string, any>} section
 * @param {string} above
 * @returns {[path: string, value: any][]}
 */
function leaves(section, above) {
  return Object.entries(section).flatMap(([name, value]) => {
    const isSection = value !== null && typeof value === "object" && !Array.isArray(value);
    return isSection
      ? leaves(value, `${above}${name}.`)
      : [/** @type {[string, any]} */ ([above + name, value])];
  });
}

/**
 * @param {string} path
 * @param {any} value
 * @param {boolean} differs
 */
function newLine(path, value, differs) {
  const usual = defaultOf(path);
  const name = path.includes(".") ? path.slice(path.indexOf(".") + 1) : path;
  const note = differs && usual !== null ? `default ${settingText(usual)}` : "";
  return make(
    "tr",
    { className: differs ? "changed" : "same", dataset: { path } },
    make("th", { scope: "row" }, make("code", { textContent: name })),
    make("td", {}, make("span", { className: "value", textContent: settingText(value) })),
    make("td", { className: "muted", textContent: note }),
  );
}
