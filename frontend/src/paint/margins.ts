// Paints what stands around the plot: layer names, token labels, target selectors, the prediction.

import { LABEL_ANGLE, LABEL_SIZE, MAX_LABEL_WIDTH, plannedLabels } from "../labels";
import { layerBand } from "../layout";
import { fitText, formatWeight, visibleText } from "../text";
import { toScreen, visibleColumns } from "../view";
import type { Pen } from "./pen";
import { font, type Scene } from "./scene";

/** Height of the selectors' tips above the plot. */
const SELECTOR_BOTTOM = 7;
const SELECTOR_SIZE = 6;
const SELECTOR_SLOPE = 1.4;
const MAX_SELECTOR_SHARE = 0.36;
/** Of several targets that stand close together, which are marked however narrow the columns are. */
const MIN_SELECTOR_SIZE = 2;
/** Below this column width, other selectors than the target's would run together; the strip can still be clicked. */
const MIN_SELECTOR_COLUMN = 9;
const MUTED = 0.55;
const FAINT = 0.35;
const BAND = 0.6;
const LAYER_LABEL_SIZE = 11;
const PREDICTION_SIZE = 13;
const PREDICTION_GAP = 6;
const LABEL_GAP = 8;
/** How far the outline of a special token stands off its text. */
const OUTLINE = 2;

export function columnX(scene: Scene, position: number): number {
  return toScreen(scene.transform, { x: position, y: 0 }).x;
}

export function paintLayerLabels(context: Pen, { graph, transform, plot, theme }: Scene): void {
  const middle = (layer: number) => {
    const { top, bottom } = layerBand(layer);
    return toScreen(transform, { x: 0, y: (top + bottom) / 2 }).y;
  };
  const write = (text: string, y: number) => {
    if (y > plot.top && y < plot.top + plot.height) context.fillText(text, plot.left - LABEL_GAP, y);
  };
  const pixels = Math.abs(middle(1) - middle(0));
  const every = Math.ceil((LAYER_LABEL_SIZE + 4) / pixels);
  context.font = font(LAYER_LABEL_SIZE, theme.font);
  context.fillStyle = theme.text;
  context.globalAlpha = MUTED;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let layer = 0; layer < graph.nLayers; layer += every) {
    write(`L${layer}`, middle(layer));
  }
  const embeddings = toScreen(transform, { x: 0, y: 0 }).y;
  if (embeddings - middle(0) > LAYER_LABEL_SIZE + 4) write("emb", embeddings);
  context.globalAlpha = 1;
}

export function paintTokenLabels(context: Pen, scene: Scene): void {
  const { graph, transform, plot, theme, labels } = scene;
  const [first, last] = visibleColumns(transform, graph, plot);
  const pixels = transform.kx;
  const priority = (position: number) => {
    // What follows the last of several targets stands above it, and what was looked for is to be found among many.
    if (position === graph.header.target) return 5;
    if (position === scene.currentMatch) return 4;
    if (scene.matches.has(position)) return 3;
    return graph.isTarget[position] ? 2 : graph.isRouteColumn[position];
  };
  const measure = (text: string) => context.measureText(text).width;
  const y = plot.top + plot.height + labels.lane + LABEL_GAP;
  context.fillStyle = theme.text;
  for (const position of plannedLabels(labels.mode, pixels, first, last, priority)) {
    const x = columnX(scene, position);
    if (x < plot.left || x > plot.left + plot.width) continue;
    const strong = priority(position) > 0;
    const isSpecial = graph.header.roles?.[position] === "special";
    context.font = font(LABEL_SIZE, theme.codeFont, graph.isTarget[position] ? 700 : 400, isSpecial);
    context.globalAlpha = strong ? 1 : MUTED;
    if (labels.mode === "level") {
      context.textAlign = "center";
      context.textBaseline = "top";
      const text = fitText(labels.texts[position], Math.max(pixels, 3 * LABEL_SIZE) - 4, measure);
      context.fillText(text, x, y);
      if (isSpecial) paintOutline(context, scene, x - measure(text) / 2, y + LABEL_SIZE / 2 - 1, measure(text));
    } else {
      const room = Math.min(MAX_LABEL_WIDTH, (x - OUTLINE) / Math.cos(LABEL_ANGLE));
      context.save();
      context.translate(x + LABEL_SIZE / 3, y);
      context.rotate(-LABEL_ANGLE);
      context.textAlign = "right";
      context.textBaseline = "middle";
      const text = fitText(labels.texts[position], room, measure);
      context.fillText(text, 0, 0);
      if (isSpecial) paintOutline(context, scene, -measure(text), 0, measure(text));
      context.restore();
    }
  }
  context.globalAlpha = 1;
}

/** The outline that tells special tokens from others, around a text that begins at x and has its middle at y. */
function paintOutline(context: Pen, { theme }: Scene, x: number, y: number, width: number): void {
  const height = LABEL_SIZE + 1;
  context.strokeStyle = theme.text;
  context.lineWidth = 0.75;
  context.strokeRect(x - OUTLINE, y - height / 2, width + 2 * OUTLINE, height);
}

export function paintSelectors(context: Pen, scene: Scene): void {
  const { graph, transform, plot, theme } = scene;
  const [first, last] = visibleColumns(transform, graph, plot);
  if (transform.kx >= MIN_SELECTOR_COLUMN) {
    const size = Math.min(SELECTOR_SIZE, MAX_SELECTOR_SHARE * transform.kx);
    context.strokeStyle = theme.text;
    context.lineWidth = 1;
    context.globalAlpha = FAINT;
    context.beginPath();
    for (let position = first; position <= last; position++) {
      if (!graph.isTarget[position]) addSelector(context, scene, position, size);
    }
    context.stroke();
    context.globalAlpha = 1;
  }
  const { target, targets } = graph.header;
  const room = targets.length > 1 ? Math.max(MIN_SELECTOR_SIZE, MAX_SELECTOR_SHARE * transform.kx) : SELECTOR_SIZE;
  context.fillStyle = theme.text;
  context.beginPath();
  for (const position of targets) addSelector(context, scene, position, Math.min(SELECTOR_SIZE, room));
  context.fill();
  const x = columnX(scene, target);
  if (x >= plot.left && x <= plot.left + plot.width) paintPrediction(context, scene, x);
}

/** The triangle above the column that the pointer is in: at full size, so that a column of any width is seen to have one. */
export function paintPointedSelector(context: Pen, scene: Scene, position: number, isHit: boolean): void {
  const { theme, graph } = scene;
  if (graph.isTarget[position] && !isHit) return;
  context.beginPath();
  addSelector(context, scene, position, SELECTOR_SIZE);
  context.fillStyle = isHit ? theme.selection : theme.background;
  context.fill();
  if (isHit) return;
  context.strokeStyle = theme.text;
  context.lineWidth = 1;
  context.stroke();
}

/** Adds the triangle above a column to the current path. */
function addSelector(context: Pen, scene: Scene, position: number, size: number): void {
  const x = columnX(scene, position);
  const { plot } = scene;
  if (x < plot.left || x > plot.left + plot.width) return;
  const tip = plot.top - SELECTOR_BOTTOM;
  context.moveTo(x - size, tip - size * SELECTOR_SLOPE);
  context.lineTo(x + size, tip - size * SELECTOR_SLOPE);
  context.lineTo(x, tip);
  context.closePath();
}

/** Where a selector is clicked. */
export function selectorY({ plot }: Scene): number {
  return plot.top - SELECTOR_BOTTOM - SELECTOR_SIZE;
}

function paintPrediction(context: Pen, scene: Scene, x: number): void {
  const { prediction, probability } = scene.graph.header;
  if (prediction === null) return;
  const { theme, width, plot } = scene;
  const y = (plot.top - SELECTOR_BOTTOM - SELECTOR_SLOPE * SELECTOR_SIZE) / 2;
  const plain = font(LAYER_LABEL_SIZE, theme.font);
  const strong = font(PREDICTION_SIZE, theme.codeFont, 700);
  const parts = [
    { text: "\u2192", font: plain },
    { text: fitText(visibleText(prediction), 2 * MAX_LABEL_WIDTH, measuredIn(context, strong)), font: strong },
    ...(probability === null ? [] : [{ text: formatWeight(probability), font: plain }]),
  ];
  const widths = parts.map((part) => measuredIn(context, part.font)(part.text));
  const total = widths.reduce((sum, width) => sum + width + PREDICTION_GAP, -PREDICTION_GAP);
  let left = Math.min(Math.max(4, x - total / 2), width - total - 4);
  context.textAlign = "left";
  context.textBaseline = "middle";
  parts.forEach((part, index) => {
    context.font = part.font;
    context.fillText(part.text, left, y);
    left += widths[index] + PREDICTION_GAP;
  });
}

function measuredIn(context: Pen, family: string): (text: string) => number {
  return (text) => {
    context.font = family;
    return context.measureText(text).width;
  };
}

/** Alternating bands tell layers apart; thin lines mark the columns. */
export function paintGround(context: Pen, scene: Scene): void {
  const { graph, transform, plot, theme } = scene;
  context.fillStyle = theme.band;
  context.globalAlpha = BAND;
  for (let layer = 0; layer < graph.nLayers; layer += 2) {
    const { top, bottom } = layerBand(layer);
    const y = toScreen(transform, { x: 0, y: top }).y;
    context.fillRect(plot.left, y, plot.width, (bottom - top) * transform.ky);
  }
  context.globalAlpha = 1;
}

/** Tints a column over the whole plot. */
export function paintColumn(context: Pen, scene: Scene, position: number, color: string, alpha: number) {
  const { plot, transform } = scene;
  const width = Math.max(3, 0.9 * transform.kx);
  context.globalAlpha = alpha;
  context.fillStyle = color;
  context.fillRect(columnX(scene, position) - width / 2, plot.top, width, plot.height);
  context.globalAlpha = 1;
}
