// What painters draw with: the part of a canvas's context that they use, so that a picture can be written with the same strokes.

type Drawing =
  | "save"
  | "restore"
  | "translate"
  | "rotate"
  | "beginPath"
  | "closePath"
  | "moveTo"
  | "lineTo"
  | "bezierCurveTo"
  | "arc"
  | "rect"
  | "clip"
  | "fill"
  | "stroke"
  | "fillRect"
  | "strokeRect"
  | "fillText"
  | "setLineDash";
type Style =
  "fillStyle" | "strokeStyle" | "globalAlpha" | "lineWidth" | "lineCap" | "font" | "textAlign" | "textBaseline";

export interface Pen extends Pick<CanvasRenderingContext2D, Drawing | Style> {
  measureText(text: string): { width: number };
}
