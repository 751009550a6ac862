// From a contribution (0 to 1) to how strongly it is drawn, and from an effect to its place on the scale of colours. Colours are in `theme.ts`.

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

/** How an edge is dashed that only one of two graphs has: pixels of line and gap. */
export const DASH: readonly number[] = [7, 4];

/** What the colour of an edge says: its kind, or its direct effect, or of two graphs its change. Its width says its contribution in any case. */
export type Coloring = "contribution" | "effect";

/** Shades on either side of the neutral one. */
const EFFECT_SHADES = 6;

/** An effect as a share of the largest, -1 to 1; effects beyond the ends of the scale are at its ends. */
export function effectShare(effect: number, largest: number): number {
  return largest > 0 ? Math.min(1, Math.max(-1, effect / largest)) : 0;
}

/** The shade of an effect as a share of the full colour, -1 to 1 in a few steps, so that a thousand edges share one stroke. */
export function effectShade(effect: number, largest: number): number {
  const share = effectShare(effect, largest);
  // Steps are finer near 0, where most effects are; 0 itself stays neutral.
  return (Math.sign(share) * Math.round(Math.sqrt(Math.abs(share)) * EFFECT_SHADES)) / EFFECT_SHADES || 0;
}
