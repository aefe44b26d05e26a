// @ts-check
// The colours and dashes of lines.

export { onSchemeChange, paintLine } from "../chart.js";
