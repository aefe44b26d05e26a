// @ts-check
// A moving average over training steps. It depends on what was measured at which step, not on how
// many points are drawn, so a chart that is thinned out shows the same curve as all its values.

/** @import { Columns } from "../types.d.ts" */

/**
 * Returns the exponential moving average at the last step of each bucket.
 *
 * A value measured n steps ago has the weight exp(-n / span). The sum is divided by the weights that
 * it has, so the start of the curve is not drawn to 0 and gaps are bridged. A bucket counts as its
 * values spread evenly over its steps. Null for a bucket without a finite value.
 *
 * @param {Pick<Columns, "step" | "first_step" | "mean" | "count">} columns
 * @param {number} span in steps, above 0
 * @returns {(number | null)[]}
 */
export function smoothed({ step, first_step: firstStep, mean, count }, span) {
  let sum = 0;
  let mass = 0;
  return mean.map((value, place) => {
    const passed = place === 0 ? 0 : Math.max(0, step[place] - step[place - 1]);
    const decay = Math.exp(-passed / span);
    sum *= decay;
    mass *= decay;
    if (value === null) return null;
    const weight = massOf(step[place] - firstStep[place], Math.max(1, count[place]), span);
    sum += weight * value;
    mass += weight;
    return sum / mass;
  });
}

/**
 * Returns the sum of weights of `count` values spread evenly over `steps` steps, the last of them
 * measured now.
 *
 * @param {number} steps
 * @param {number} count
 * @param {number} span
 */
function massOf(steps, count, span) {
  if (count === 1 || steps <= 0) return count;
  const ratio = Math.exp(-steps / (count - 1) / span);
  return ratio === 1 ? count : (1 - ratio ** count) / (1 - ratio);
}
