// Paints the graph itself, in order from the ground up. What follows pointer, selection and keyboard is in `overlay.ts`.

import { toGrid, toScreen, type Transform } from "../view";
import { paintEdges, type PaintedEdges } from "./edges";
import { paintColumn, paintGround, paintLayerLabels, paintSelectors, paintTokenLabels } from "./margins";
import { paintPaleNodes, paintRouteNodes } from "./nodes";
import type { Pen } from "./pen";
import { paintRoles } from "./roles";
import type { Scene } from "./scene";

const MATCH_TINT = 0.13;
const CURRENT_MATCH_TINT = 0.3;
const TARGET_TINT = 0.06;

export function paintBase(context: Pen, scene: Scene): PaintedEdges {
  const { plot, theme } = scene;
  context.save();
  context.beginPath();
  context.rect(plot.left, plot.top, plot.width, plot.height);
  context.clip();
  paintGround(context, scene);
  for (const position of scene.graph.header.targets) paintColumn(context, scene, position, theme.text, TARGET_TINT);
  for (const position of scene.matches) {
    paintColumn(
      context,
      scene,
      position,
      theme.selection,
      position === scene.currentMatch ? CURRENT_MATCH_TINT : MATCH_TINT,
    );
  }
  paintPaleNodes(context, scene);
  const painted = paintEdges(context, scene);
  paintRouteNodes(context, scene);
  context.restore();
  paintMargins(context, scene);
  return painted;
}

/** A full painting, and the view that it was made for. */
export interface Painting {
  image: HTMLCanvasElement;
  transform: Transform;
}

/**
 * While the page moves: the last full painting in its new place, what comes into sight with its strongest edges, and
 * margins anew. However many edges there are, this costs about the same.
 */
export function paintMoving(context: CanvasRenderingContext2D, scene: Scene, { image, transform }: Painting): void {
  const { plot } = scene;
  const corner = toScreen(scene.transform, toGrid(transform, { x: plot.left, y: plot.top }));
  const width = (plot.width * scene.transform.kx) / transform.kx;
  const height = (plot.height * scene.transform.ky) / transform.ky;
  context.save();
  context.beginPath();
  context.rect(plot.left, plot.top, plot.width, plot.height);
  context.clip();
  context.save();
  context.beginPath();
  context.rect(plot.left, plot.top, plot.width, plot.height);
  context.rect(corner.x, corner.y, width, height);
  context.clip("evenodd");
  paintGround(context, scene);
  paintEdges(context, { ...scene, detail: "moving" });
  context.restore();
  const ratio = image.width / scene.width;
  context.drawImage(
    image,
    ...([plot.left, plot.top, plot.width, plot.height].map((value) => value * ratio) as [
      number,
      number,
      number,
      number,
    ]),
    ...([corner.x, corner.y, width, height] as const),
  );
  context.restore();
  paintMargins(context, scene);
}

function paintMargins(context: Pen, scene: Scene): void {
  paintLayerLabels(context, scene);
  paintRoles(context, scene);
  paintTokenLabels(context, scene);
  paintSelectors(context, scene);
}
