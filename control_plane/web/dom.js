// @ts-check
// How this page reads and changes the document. Data enters as text, never as markup.

/**
 * Returns the first element below `root` that matches. Throws unless there is one of this class.
 *
 * @template {Element} [T=HTMLElement]
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => T} [type]
 * @returns {T}
 */
export function find(root, selector, type) {
  const element = root.querySelector(selector);
  const expected = type ?? HTMLElement;
  if (!(element instanceof expected)) throw new Error(`no ${expected.name} matches ${selector}`);
  return /** @type {T} */ (element);
}

/**
 * Returns the element with this id. Throws unless there is one of this class.
 *
 * @template {Element} [T=HTMLElement]
 * @param {string} id
 * @param {new () => T} [type]
 * @returns {T}
 */
export function byId(id, type) {
  return find(document, `#${id}`, type);
}

/**
 * @template {HTMLElement} T
 * @typedef {Partial<Omit<T, "dataset">> & {dataset?: Record<string, string>}} Properties
 */

/**
 * Makes an element from a tag name, its properties and its children (elements or text).
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Properties<HTMLElementTagNameMap[K]>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { dataset, ...others } = properties;
  Object.assign(element, others);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

/**
 * Sets the text only if it differs, so that a selection in unchanged text survives.
 *
 * @param {Node} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Returns a dotted path as parts between which a line may break.
 *
 * @param {string} path
 */
export function breakable(path) {
  return path.split(/(?<=[._])/).flatMap((part, place) => place === 0 ? [part] : [make("wbr"), part]);
}

/**
 * Returns a description as parts: what stands between backticks is code.
 *
 * @param {string} text
 */
export function withCode(text) {
  return text.split("`").map((part, place) =>
    place % 2 === 1 ? make("code", { textContent: part }) : part);
}

/**
 * @param {HTMLElement} element
 * @param {boolean} isVisible
 */
export function show(element, isVisible) {
  element.hidden = !isVisible;
}

/**
 * Makes each button below `root` with `data-copies="ID"` copy the text of that element.
 *
 * @param {ParentNode} root
 */
export function makeCopyButtons(root) {
  for (const button of root.querySelectorAll("button")) {
    const { copies } = button.dataset;
    if (copies === undefined) continue;
    button.addEventListener("click", () => copyText(button, byId(copies).textContent));
  }
}

/**
 * Copies a text, and says so on the button for a moment.
 *
 * @param {HTMLButtonElement} button
 * @param {string} text
 */
export async function copyText(button, text) {
  await navigator.clipboard.writeText(text);
  setText(button, "Copied");
  setTimeout(() => setText(button, "Copy"), 1500);
}

/**
 * Fills `container` with a row of exclusive choices. Returns a function that marks one as chosen.
 *
 * @param {HTMLElement} container
 * @param {[value: string, label: string][]} options
 * @param {"radio" | "tab"} role
 * @param {(value: string) => void} onChoose
 * @returns {(chosen: string) => void}
 */
export function choices(container, options, role, onChoose) {
  /** @type {Map<string, HTMLButtonElement>} */
  const buttons = new Map();
  for (const [value, label] of options) {
    const button = make("button", { type: "button", textContent: label });
    button.setAttribute("role", role);
    button.dataset.value = value;
    button.addEventListener("click", () => onChoose(value));
    buttons.set(value, button);
  }
  container.replaceChildren(...buttons.values());
  container.addEventListener("keydown", (event) => {
    const offset = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!offset) return;
    const list = [...buttons.values()].filter((button) => !button.hidden);
    const place = list.findIndex((button) => button === document.activeElement);
    const next = list[(place + offset + list.length) % list.length];
    next.focus();
    next.click();
    event.preventDefault();
  });
  return (chosen) => {
    for (const [value, button] of buttons) {
      const isChosen = value === chosen;
      button.setAttribute(role === "tab" ? "aria-selected" : "aria-checked", String(isChosen));
      button.tabIndex = isChosen ? 0 : -1;
    }
  };
}

/**
 * Puts one row per entry into `container`, in order: makes new ones, moves those that have moved,
 * removes the others.
 *
 * @template T
 * @template {{element: HTMLElement}} Row
 * @param {HTMLElement} container
 * @param {Map<string, Row>} rows by key; changed in place
 * @param {T[]} entries
 * @param {(entry: T) => string} keyOf
 * @param {(entry: T) => Row} newRow
 */
export function placeRows(container, rows, entries, keyOf, newRow) {
  entries.forEach((entry, place) => {
    const key = keyOf(entry);
    const row = rows.get(key) ?? newRow(entry);
    rows.set(key, row);
    const present = container.children[place] ?? null;
    if (present !== row.element) container.insertBefore(row.element, present);
  });
  const keys = new Set(entries.map(keyOf));
  for (const [key, row] of rows) {
    if (!keys.has(key)) {
      row.element.remove();
      rows.delete(key);
    }
  }
}
