// From a contribution (0 to 1) to how strongly it is drawn. Colours are in `theme.ts`.

const MIN_WIDTH = 0.9;
const MAX_WIDTH = 6.5;
const MIN_OPACITY = 0.3;
const MAX_OPACITY = 0.95;
/** Edges are painted in this many classes of weight, so that a thousand of them share one stroke. */
export const WEIGHT_CLASSES = 12;

function clampedWeight(weight: number): number {
  return Number.isFinite(weight) ? Math.min(1, Math.max(0, weight)) : 0;
}

/** Line width in pixels at full size. */
export function edgeWidth(weight: number): number {
  return MIN_WIDTH + (MAX_WIDTH - MIN_WIDTH) * clampedWeight(weight) ** 0.8;
}

export function edgeOpacity(weight: number): number {
  return MIN_OPACITY + (MAX_OPACITY - MIN_OPACITY) * Math.sqrt(clampedWeight(weight));
}

/** Finer classes for small weights, where most edges are. */
export function weightClass(weight: number): number {
  return Math.min(WEIGHT_CLASSES - 1, Math.floor(Math.sqrt(clampedWeight(weight)) * WEIGHT_CLASSES));
}

/** The weight that stands for all of its class. */
export function classWeight(index: number): number {
  return ((index + 0.5) / WEIGHT_CLASSES) ** 2;
}
