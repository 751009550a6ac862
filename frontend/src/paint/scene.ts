// What the painters need to know, and the sizes they share. Nothing here draws.

import type { Graph } from "../graph";
import type { LabelMode } from "../labels";
import type { Coloring } from "../scale";
import type { Theme } from "../theme";
import type { Plot, Transform } from "../view";

export interface Labels {
  texts: readonly string[];
  widths: Float32Array;
  mode: LabelMode;
  /** Height of the lane above them for the bands of speakers; 0 without any. */
  lane: number;
}

/** How many edges are painted: all that a still page can, few while it moves, or as many as a saved picture can hold. */
export type Detail = "still" | "moving" | "picture";

export interface Scene {
  graph: Graph;
  transform: Transform;
  plot: Plot;
  width: number;
  height: number;
  theme: Theme;
  coloring: Coloring;
  detail: Detail;
  labels: Labels;
  /** Columns that the search found, and the one it stands at. */
  matches: ReadonlySet<number>;
  currentMatch: number | null;
}

const NODE_SHARE = 0.085;
const MIN_NODE_RADIUS = 0.6;
const MAX_NODE_RADIUS = 8;
/** Column width in pixels at which edges have their full width. */
const FULL_WIDTH_COLUMN = 60;
const MIN_STROKE_SCALE = 0.45;
const MAX_STROKE_SCALE = 1.3;

/** Below this column width nothing smaller than a route can be told apart: FFN blocks and most edges are left out. */
const FAR_COLUMN = 7;

export function isFar({ transform }: Scene): boolean {
  return transform.kx < FAR_COLUMN;
}

/** Radius of a node in pixels. */
export function nodeRadius({ transform: { kx, ky } }: Scene): number {
  const cell = Math.min(kx, 1.4 * ky);
  return Math.min(MAX_NODE_RADIUS, Math.max(MIN_NODE_RADIUS, NODE_SHARE * cell));
}

/** What edge widths are multiplied with. */
export function strokeScale({ transform }: Scene): number {
  return Math.min(MAX_STROKE_SCALE, Math.max(MIN_STROKE_SCALE, transform.kx / FULL_WIDTH_COLUMN));
}

export function font(size: number, family: string, weight = 400, isItalic = false): string {
  return `${isItalic ? "italic " : ""}${weight} ${size}px ${family}`;
}
