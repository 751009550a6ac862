// Which token labels are written, and how: level, tilted, or left out where they would overlap. Pure arithmetic.

export const LABEL_SIZE = 12;
export const LABEL_ANGLE = (50 * Math.PI) / 180;
/** Longer labels are cut with an ellipsis; the tooltip and the status line have the whole text. */
export const MAX_LABEL_WIDTH = 96;
const LEVEL_GAP = 6;
const LINE_HEIGHT = LABEL_SIZE + 1;
const LEVEL_MARGIN = 24;
const TILTED_MARGIN = 14;
/** Height of the lane between graph and labels that holds the bands of speakers. */
export const ROLE_LANE = 19;

export type LabelMode = "level" | "tilted";

/** Level if every label fits between its neighbours. */
export function labelMode(widths: Float32Array, columnPixels: number): LabelMode {
  return Math.max(...widths) + LEVEL_GAP <= columnPixels ? "level" : "tilted";
}

/** Pixels that the labels need below the graph. */
export function labelMargin(mode: LabelMode, widths: Float32Array): number {
  if (mode === "level") return LEVEL_MARGIN;
  const longest = Math.min(MAX_LABEL_WIDTH, Math.max(...widths));
  return Math.ceil(longest * Math.sin(LABEL_ANGLE) + LINE_HEIGHT * Math.cos(LABEL_ANGLE)) + TILTED_MARGIN;
}

/**
 * The columns from `first` to `last` whose labels are written. Where columns are narrower than a label needs, columns of
 * higher priority go first, and a label is left out when one of those is too near.
 */
export function plannedLabels(
  mode: LabelMode,
  columnPixels: number,
  first: number,
  last: number,
  priority: (position: number) => number,
): number[] {
  const needed = mode === "level" ? LABEL_SIZE * 3 : LINE_HEIGHT / Math.sin(LABEL_ANGLE);
  const reach = Math.ceil(needed / columnPixels) - 1;
  const columns = Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i);
  if (reach <= 0) return columns;
  const taken = new Uint8Array(columns.length);
  return columns
    .map((position) => ({ position, priority: priority(position) }))
    .sort((a, b) => b.priority - a.priority || a.position - b.position)
    .filter(({ position }) => {
      const at = position - first;
      if (taken[at]) return false;
      taken.fill(1, Math.max(0, at - reach), at + reach + 1);
      return true;
    })
    .map(({ position }) => position);
}
