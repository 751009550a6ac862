// Paints the lane between graph and labels: a band for each message of a conversation, with its speaker where there is room.

import { ROLE_LANE } from "../labels";
import { roleSpans } from "../roles";
import { toScreen } from "../view";
import type { Pen } from "./pen";
import { font, type Scene } from "./scene";

const TOP = 3;
const LINE = 4;
const TINT = 0.22;
const NAME_SIZE = 10;
const NAME_GAP = 5;
/** Bands stop a little short of their cells, so that neighbours stay apart. */
const GAP = 0.06;
const DASH = [4, 2];

export function paintRoles(pen: Pen, scene: Scene): void {
  const { graph, plot, theme, transform, labels } = scene;
  if (labels.lane === 0) return;
  const top = plot.top + plot.height + TOP;
  const height = ROLE_LANE - TOP;
  pen.save();
  pen.beginPath();
  pen.rect(plot.left, top, plot.width, height);
  pen.clip();
  pen.font = font(NAME_SIZE, theme.font);
  pen.textBaseline = "middle";
  pen.textAlign = "center";
  for (const { role, first, last } of roleSpans(graph.header.roles)) {
    const from = toScreen(transform, { x: first - 0.5 + GAP, y: 0 }).x;
    const to = toScreen(transform, { x: last + 0.5 - GAP, y: 0 }).x;
    if (to < plot.left || from > plot.left + plot.width) continue;
    pen.fillStyle = theme.role[role];
    pen.globalAlpha = TINT;
    pen.fillRect(from, top, to - from, height);
    pen.globalAlpha = 1;
    // What the model wrote itself is dashed: colour alone would have to tell it from what it was given.
    pen.strokeStyle = theme.role[role];
    pen.lineWidth = LINE;
    pen.setLineDash(role === "continuation" ? DASH : []);
    pen.beginPath();
    pen.moveTo(from, top + LINE / 2);
    pen.lineTo(to, top + LINE / 2);
    pen.stroke();
    pen.setLineDash([]);
    // The name stays in sight while its band is.
    const [left, right] = [Math.max(from, plot.left), Math.min(to, plot.left + plot.width)];
    if (pen.measureText(role).width + NAME_GAP > right - left) continue;
    pen.fillStyle = theme.text;
    pen.fillText(role, (left + right) / 2, top + LINE + (height - LINE) / 2 + 0.5);
  }
  pen.restore();
}
