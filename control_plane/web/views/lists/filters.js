// @ts-check
// The controls above the list: search, states, group and tags, columns.

import { byId, find, make, setText, show } from "../../dom.js";
import { STATES } from "../../format.js";
import { COLUMNS, columnOf } from "./columns.js";
import { GROUP, tagsIn } from "./query.js";
import { loadSchemas, settingNames } from "./settings.js";

/** @import { RunStore } from "../../state/store.js" */
/** @import { RunState } from "../../types.d.ts" */
/** @import { RunList } from "./runs.js" */

const SEARCH_AFTER_MS = 200;

/**
 * Makes the controls change the list.
 *
 * @param {RunList} list
 * @param {RunStore} store
 */
export function makeFilters(list, store) {
  const search = byId("search", HTMLInputElement);
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => list.ask({ text: search.value.trim() }), SEARCH_AFTER_MS);
  });
  makeStates(list);
  makeLabels(list);
  makeColumns(list, store);
  for (const menu of document.querySelectorAll("details.menu")) closeOutside(menu);
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target instanceof Element && event.target.closest("input, textarea, select");
    if (event.key !== "/" || isTyping || byId("view-runs").hidden) return;
    search.focus();
    event.preventDefault();
  });
  showFilters(list);
}

/**
 * Shows what the list has been asked for.
 *
 * @param {RunList} list
 */
export function showFilters({ query }) {
  const search = byId("search", HTMLInputElement);
  if (search.value.trim() !== query.text) search.value = query.text;
  const chosen = [...query.states];
  const text = chosen.length === 1 ? STATES[chosen[0]] : `${chosen.length} states`;
  setText(find(byId("states"), "summary"), chosen.length === 0 ? "All states" : text);
  for (const box of byId("state-choices").querySelectorAll("input")) {
    box.checked = chosen.includes(/** @type {RunState} */ (box.value));
  }
  byId("filter-group", HTMLInputElement).value = query.group;
  byId("filter-tags", HTMLInputElement).value = query.tags.join(", ");
  const chips = [
    ...(query.group === "" ? [] : [newFilter("group", query.group)]),
    ...query.tags.map((tag) => newFilter("tag", tag)),
  ];
  byId("filters").replaceChildren(...chips);
  show(byId("filters"), chips.length > 0);
  showColumns(query.columns);
}

/**
 * @param {"group" | "tag"} name
 * @param {string} value
 */
function newFilter(name, value) {
  const button = make("button", {
    type: "button", className: "chip on", dataset: { [name]: value }, title: "Remove this filter",
  }, `${name} ${value} \u00d7`);
  button.setAttribute("aria-label", `Remove the filter ${name} ${value}`);
  return button;
}

/**
 * Filters by group and tags: typed, or by a click at those of a run.
 *
 * @param {RunList} list
 */
function makeLabels(list) {
  const ask = (/** @type {Partial<import("./query.js").Query>} */ changes) => {
    list.ask(changes);
    showFilters(list);
  };
  byId("label-filter").addEventListener("submit", (event) => {
    event.preventDefault();
    const input = byId("filter-group", HTMLInputElement);
    const group = input.value.trim();
    input.setCustomValidity(group === "" || GROUP.test(group) ? "" : "A group is named like a run: lower-case letters, digits and hyphens.");
    if (!input.reportValidity()) return;
    ask({ group, tags: tagsIn(byId("filter-tags", HTMLInputElement).value) });
    byId("states", HTMLDetailsElement).open = false;
  });
  byId("filter-group").addEventListener("input", () =>
    byId("filter-group", HTMLInputElement).setCustomValidity(""));
  byId("rows").addEventListener("click", ({ target }) => {
    const { group, tag } = chipOf(target);
    if (group !== undefined) ask({ group });
    if (tag !== undefined) ask({ tags: [...new Set([...list.query.tags, tag])] });
  });
  byId("filters").addEventListener("click", ({ target }) => {
    const { group, tag } = chipOf(target);
    if (group !== undefined) ask({ group: "" });
    if (tag !== undefined) ask({ tags: list.query.tags.filter((one) => one !== tag) });
    if (group !== undefined || tag !== undefined) byId("search").focus();
  });
}

/**
 * @param {EventTarget | null} target
 * @returns {DOMStringMap}
 */
function chipOf(target) {
  const chip = target instanceof Element ? target.closest("button.chip") : null;
  return chip instanceof HTMLElement ? chip.dataset : {};
}

/** @param {RunList} list */
function makeStates(list) {
  const states = /** @type {RunState[]} */ (Object.keys(STATES));
  byId("state-choices").append(...states.map((state) => {
    const box = checkbox(state, STATES[state]);
    box.input.addEventListener("change", () => {
      const next = new Set(list.query.states);
      if (box.input.checked) next.add(state);
      else next.delete(state);
      list.ask({ states: next });
      showFilters(list);
    });
    return box.element;
  }));
}

/**
 * @param {RunList} list
 * @param {RunStore} store
 */
function makeColumns(list, store) {
  const toggle = (/** @type {string} */ key) => {
    const { columns } = list.query;
    const next = columns.includes(key) ? columns.filter((one) => one !== key) : [...columns, key];
    list.ask({ columns: next });
    showFilters(list);
  };
  byId("column-choices").addEventListener("change", (event) => {
    if (event.target instanceof HTMLInputElement) toggle(event.target.value);
  });
  byId("columns").addEventListener("toggle", async () => {
    await loadSchemas().catch(() => {});
    const metrics = [...store.runs.values()].flatMap((run) => Object.keys(run.latest));
    const names = [...settingNames(), ...[...new Set(metrics)].sort()];
    byId("column-names").replaceChildren(...names.map((value) => make("option", { value })));
  });
  const name = byId("column-name", HTMLInputElement);
  byId("column-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = name.value.trim();
    const key = settingNames().includes(typed) ? `spec.${typed}` : `latest.${typed}`;
    const isKnown = columnOf(key) !== undefined;
    name.setCustomValidity(isKnown ? "" : "No setting or metric has this name.");
    if (!name.reportValidity()) return;
    name.value = "";
    if (!list.query.columns.includes(key)) toggle(key);
  });
  name.addEventListener("input", () => name.setCustomValidity(""));
}

/** @param {string[]} columns */
function showColumns(columns) {
  const own = columns.filter((key) => !COLUMNS.some((column) => column.key === key));
  const keys = [...COLUMNS.map((column) => column.key), ...own];
  const list = byId("column-choices");
  const present = [...list.querySelectorAll("input")].map((input) => input.value);
  if (present.join() !== keys.join()) {
    const boxes = keys.map((key) => checkbox(key, columnOf(key)?.label ?? key).element);
    list.replaceChildren(find(list, "legend"), ...boxes);
  }
  for (const box of list.querySelectorAll("input")) box.checked = columns.includes(box.value);
}

/**
 * @param {string} value
 * @param {string} label
 */
function checkbox(value, label) {
  const input = make("input", { type: "checkbox", value });
  return { input, element: make("label", {}, input, label) };
}

/** @param {Element} menu a <details> that closes when the user goes elsewhere */
function closeOutside(menu) {
  if (!(menu instanceof HTMLDetailsElement)) return;
  document.addEventListener("pointerdown", ({ target }) => {
    if (target instanceof Node && !menu.contains(target)) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    find(menu, "summary").focus();
    event.stopPropagation();
  });
}
