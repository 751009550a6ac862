// How the canvas is divided for a graph: margins for labels, size of columns and rows. Pure arithmetic on sizes.

import { labelMargin, labelMode, type LabelMode } from "./labels";
import type { Grid } from "./layout";
import { fitScale, type Plot, type Scale } from "./view";

export const LEFT_MARGIN = 38;
export const RIGHT_MARGIN = 14;
export const TOP_MARGIN = 42;
const MIN_PLOT = 20;

export interface Arrangement {
  plot: Plot;
  fitted: Scale;
  mode: LabelMode;
}

/** The room that is left for the graph itself when labels are written this way, below a lane for bands of so many pixels. */
export function plotFor(width: number, height: number, mode: LabelMode, labelWidths: Float32Array, lane = 0): Plot {
  return {
    left: LEFT_MARGIN,
    top: TOP_MARGIN,
    width: Math.max(MIN_PLOT, width - LEFT_MARGIN - RIGHT_MARGIN),
    height: Math.max(MIN_PLOT, height - TOP_MARGIN - lane - labelMargin(mode, labelWidths)),
  };
}

/** Fills the canvas: labels are level if they fit between the columns that this leaves, else tilted. */
export function arrange(width: number, height: number, grid: Grid, labelWidths: Float32Array, lane = 0): Arrangement {
  const arranged = (mode: LabelMode): Arrangement => {
    const plot = plotFor(width, height, mode, labelWidths, lane);
    return { plot, fitted: fitScale(grid, plot), mode };
  };
  const level = arranged("level");
  const mode = labelMode(labelWidths, level.fitted.kx);
  return mode === "level" ? level : arranged(mode);
}
