// @ts-check
// Which part of an axis a chart shows.

/** @typedef {[low: number, high: number]} Range */

// How far beyond the 5 % and the 95 % quantile a value still counts as normal, in distances
// between the two. A loss that falls as usual stays inside; a spike of ten times the values does not.
const FENCE = 2;
const MIN_VALUES = 8;

/**
 * Returns the lowest and the highest value; null without any.
 *
 * @param {number[]} values
 * @returns {Range | null}
 */
export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low > high ? null : [low, high];
}

/**
 * Returns the lowest and the highest value that is not an outlier; null without any value.
 *
 * With fewer than 8 values none is an outlier.
 *
 * @param {number[]} values
 * @param {boolean} isLog whether distances are ratios; the values are above 0 then
 * @returns {Range | null}
 */
export function robustExtent(values, isLog = false) {
  if (values.length < MIN_VALUES) return extent(values);
  const to = isLog ? Math.log : (/** @type {number} */ value) => value;
  const sorted = Float64Array.from(values, to).sort();
  const [low, high] = [quantile(sorted, 0.05), quantile(sorted, 0.95)];
  const reach = FENCE * (high - low);
  const [floor, ceiling] = reach > 0 ? [low - reach, high + reach] : spreadless(sorted, low);
  return extent(values.filter((value) => to(value) >= floor && to(value) <= ceiling));
}

/**
 * Where 90 % of the values are the same, the others are not outliers: they are all there is to see.
 *
 * @param {Float64Array} sorted
 * @param {number} value that 90 % of them have
 * @returns {Range}
 */
function spreadless(sorted, value) {
  const most = Math.max(value - sorted[0], sorted[sorted.length - 1] - value);
  return [value - most, value + most];
}

/**
 * @param {Float64Array} sorted at least one
 * @param {number} share from 0 to 1
 */
function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

/**
 * Returns the range with some room around it, so that a line does not touch the frame.
 *
 * @param {Range | null} range
 * @param {boolean} isLog
 * @returns {Range}
 */
export function padded(range, isLog) {
  if (range === null) return isLog ? [1, 10] : [0, 1];
  const [low, high] = range;
  if (isLog) {
    const factor = high > low ? (high / low) ** 0.05 : 1.5;
    // The lower end is a tick, so it gets a short number.
    return [roundedDown(low / factor), high * factor];
  }
  // A constant gets room in proportion to itself; a constant 0 gets some as well.
  const room = high > low ? 0.05 * (high - low) : 0.1 * Math.abs(high) || 1;
  return [low - room, high + room];
}

/** @param {number} value above 0; returns its first two digits */
function roundedDown(value) {
  const unit = 10 ** (Math.floor(Math.log10(value)) - 1);
  return Number((Math.floor(value / unit) * unit).toPrecision(2));
}

/**
 * Returns the padded range with the limits that the user has set in place of its ends. Limits that
 * leave nothing between them, or are not above 0 on a log scale, are left out.
 *
 * @param {Range} range
 * @param {readonly [number | null, number | null]} limits
 * @param {boolean} isLog
 * @returns {Range}
 */
export function limited(range, [from, to], isLog) {
  const isUsable = (/** @type {number | null} */ limit) => limit !== null && (!isLog || limit > 0);
  let [low, high] = range;
  if (from !== null && isUsable(from)) low = from;
  if (to !== null && isUsable(to)) high = to;
  if (low < high) return [low, high];
  if (from !== null && to !== null) return range;
  const span = isLog ? range[1] / range[0] : range[1] - range[0];
  if (from !== null) return [low, isLog ? low * span : low + span];
  return [isLog ? high / span : high - span, high];
}
