// @ts-check
// Checkpoints, restarts and values that were not finite, each with a shape of its own.

/** @import { default as Plot } from "uplot" */
/** @import { Line, LineMark } from "../types.d.ts" */

const REACH = 7; // pixels from the cursor
const BETWEEN_CHECKPOINTS = 5; // pixels; closer ones share one sign

/**
 * Draws the marks of the lines.
 *
 * @param {Plot} plot
 * @param {Line[]} lines
 * @param {{muted: string, bad: string}} colors
 */
export function drawMarks(plot, lines, colors) {
  const { ctx } = plot;
  const ratio = devicePixelRatio;
  const { left, top, width, height } = plot.bbox;
  ctx.save();
  let last = -Infinity;
  for (const { mark, line } of shownMarks(lines)) {
    const x = plot.valToPos(mark.x, "x", true);
    if (!(x >= left - 1 && x <= left + width + 1)) continue;
    if (mark.kind === "checkpoint") {
      if (x - last < BETWEEN_CHECKPOINTS * ratio) continue;
      last = x;
      triangle(ctx, x, top + height, 4.5 * ratio, colors.muted);
    } else if (mark.kind === "restart") {
      dashed(ctx, x, top, height, ratio, lines.length > 1 ? line.style.color : colors.muted);
    } else {
      cross(ctx, x, top + 6 * ratio, 3.5 * ratio, lines.length > 1 ? line.style.color : colors.bad);
    }
  }
  ctx.restore();
}

/**
 * Returns the marks in their order on the axis, without the checkpoints of several runs.
 *
 * @param {Line[]} lines
 * @returns {{mark: LineMark, line: Line}[]}
 */
function shownMarks(lines) {
  const all = lines.flatMap((line) => line.marks.map((mark) => ({ mark, line })));
  const shown = lines.length === 1 ? all : all.filter(({ mark }) => mark.kind !== "checkpoint");
  return shown.sort((one, other) => one.mark.x - other.mark.x);
}

/**
 * Returns what the marks near a place say; "" without one.
 *
 * @param {Plot} plot
 * @param {Line[]} lines
 * @param {number} position in pixels from the left of the plot
 */
export function marksNear(plot, lines, position) {
  const near = shownMarks(lines).filter(({ mark }) =>
    Math.abs(plot.valToPos(mark.x, "x") - position) <= REACH);
  const said = near.map(({ mark, line }) =>
    (lines.length > 1 ? `${line.name}: ${mark.label}` : mark.label));
  const first = [...new Set(said)];
  return first.length > 3 ? `${first.slice(0, 2).join("; ")}; and ${first.length - 2} more`
    : first.join("; ");
}

/**
 * Returns how many marks of each kind there are, in words; "" without any.
 *
 * @param {Line[]} lines
 */
export function marksInWords(lines) {
  const marks = lines.flatMap((line) => line.marks);
  /** @type {[LineMark["kind"], string, string][]} */
  const names = [
    ["checkpoint", "checkpoint", "checkpoints"], ["restart", "restart", "restarts"],
    ["non_finite", "place where values were not finite", "places where values were not finite"],
  ];
  const parts = names.map(([kind, one, many]) => {
    const number = marks.filter((mark) => mark.kind === kind).length;
    return number === 0 ? "" : `${number} ${number === 1 ? one : many}`;
  });
  return parts.filter(Boolean).join(", ");
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x
 * @param {number} bottom
 * @param {number} size
 * @param {string} color
 */
function triangle(ctx, x, bottom, size, color) {
  ctx.fillStyle = color;
  ctx.beginPath();
  ctx.moveTo(x - size, bottom);
  ctx.lineTo(x + size, bottom);
  ctx.lineTo(x, bottom - 1.5 * size);
  ctx.fill();
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x
 * @param {number} top
 * @param {number} height
 * @param {number} ratio pixels of the canvas per CSS pixel
 * @param {string} color
 */
function dashed(ctx, x, top, height, ratio, color) {
  ctx.strokeStyle = color;
  ctx.fillStyle = color;
  ctx.lineWidth = 1.5 * ratio;
  ctx.setLineDash([4 * ratio, 3 * ratio]);
  ctx.beginPath();
  ctx.moveTo(x, top);
  ctx.lineTo(x, top + height);
  ctx.stroke();
  ctx.setLineDash([]);
  // A flag at its top, so that it is not taken for a line of the grid.
  ctx.beginPath();
  ctx.moveTo(x, top);
  ctx.lineTo(x + 9 * ratio, top + 4 * ratio);
  ctx.lineTo(x, top + 8 * ratio);
  ctx.fill();
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x
 * @param {number} y of its middle
 * @param {number} size
 * @param {string} color
 */
function cross(ctx, x, y, size, color) {
  ctx.strokeStyle = color;
  ctx.lineWidth = size / 1.6;
  ctx.beginPath();
  ctx.moveTo(x - size, y - size);
  ctx.lineTo(x + size, y + size);
  ctx.moveTo(x + size, y - size);
  ctx.lineTo(x - size, y + size);
  ctx.stroke();
}
