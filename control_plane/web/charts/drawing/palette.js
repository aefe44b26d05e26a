// @ts-check
// The colours and dashes of lines, and what draws them beside a name.

/**
 * @typedef {object} Style
 * @property {string} color
 * @property {number[]} dash lengths in pixels; none for a whole line
 */

// The palette of Okabe and Ito, which people with any kind of colour vision can tell apart: darker
// on paper, lighter in dark mode. The seventh line has the first colour again, dashed.
const COLORS = {
  light: ["#0068a8", "#c8500a", "#00805c", "#b0508a", "#8f6400", "#55524c"],
  dark: ["#62b6ee", "#f08a4b", "#35c79a", "#e59ac4", "#e8bd4a", "#c9c5bd"],
};
const DASHES = [[], [7, 4], [2, 3]];
const DARK_MODE = matchMedia("(prefers-color-scheme: dark)");

/**
 * @param {number} index
 * @returns {Style}
 */
export const lineStyle = (index) => ({
  color: COLORS[DARK_MODE.matches ? "dark" : "light"][index % 6],
  dash: DASHES[Math.floor(index / 6) % DASHES.length],
});

/**
 * @param {SVGElement} svgLine
 * @param {number} index
 */
export function paintLine(svgLine, index) {
  paint(svgLine, lineStyle(index));
}

/**
 * @param {SVGElement} svgLine
 * @param {Style} style
 */
export function paint(svgLine, { color, dash }) {
  svgLine.style.stroke = color;
  svgLine.style.strokeDasharray = dash.join(" ");
}

/**
 * Calls the listener when the colours of lines have changed. Returns what ends that.
 *
 * @param {() => void} listener
 */
export function onSchemeChange(listener) {
  DARK_MODE.addEventListener("change", listener);
  return () => DARK_MODE.removeEventListener("change", listener);
}

/** Returns an SVG with a short line in it, and the line. */
export function sampleLine() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 10");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ x1: 1, y1: 5, x2: 23, y2: 5 })) {
    line.setAttribute(name, String(value));
  }
  svg.append(line);
  return { svg, line };
}
