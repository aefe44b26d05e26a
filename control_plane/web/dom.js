// The few ways in which this page touches the document. Data enters as text, never as markup.

export const byId = (id) => document.getElementById(id);

// Makes an element: properties by name, then children (elements or text).
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(element.dataset, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Sets text where it differs, so that a selection in unchanged text survives.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function show(element, visible) {
  element.hidden = !visible;
}

// A row of exclusive choices. Returns a function that marks one as chosen.
export function choices(container, options, role, onChoose) {
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
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const list = [...buttons.values()];
    const next = list[(list.indexOf(document.activeElement) + step + list.length) % list.length];
    next.focus();
    next.click();
    event.preventDefault();
  });
  return (chosen) => {
    for (const [value, button] of buttons) {
      button.setAttribute(role === "tab" ? "aria-selected" : "aria-checked", value === chosen);
      button.tabIndex = value === chosen ? 0 : -1;
    }
  };
}
