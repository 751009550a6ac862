// Paints the graph itself, in order from the ground up. What follows pointer, selection and keyboard is in `overlay.ts`.

import { paintEdges, type PaintedEdges } from "./edges";
import { paintColumn, paintGround, paintLayerLabels, paintSelectors, paintTokenLabels } from "./margins";
import { paintPaleNodes, paintRouteNodes } from "./nodes";
import type { Scene } from "./scene";

const MATCH_TINT = 0.13;
const CURRENT_MATCH_TINT = 0.3;
const TARGET_TINT = 0.06;

export function paintBase(context: CanvasRenderingContext2D, scene: Scene): PaintedEdges {
  const { plot, theme } = scene;
  context.clearRect(0, 0, scene.width, scene.height);
  context.save();
  context.beginPath();
  context.rect(plot.left, plot.top, plot.width, plot.height);
  context.clip();
  paintGround(context, scene);
  paintColumn(context, scene, scene.graph.header.target, theme.text, TARGET_TINT);
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
  paintLayerLabels(context, scene);
  paintTokenLabels(context, scene);
  paintSelectors(context, scene);
  return painted;
}
