// Wheel, drag and pinch on an element, each as: what was at `from` goes to `to`, and everything around it grows by `factor`.
// Not d3-zoom, whose transforms have one scale for both axes.

import type { Point } from "./layout";

/** The pointer may wander so many pixels between press and release of a click. */
const CLICK_DISTANCE = 4;
/** How far a step of the wheel zooms (powers of two), by its unit: pixels, lines, pages. */
const WHEEL_STEPS = [0.002, 0.05, 1];
/** Browsers report a pinch on a touchpad as a wheel with Ctrl, in smaller steps. */
const PINCH_STEPS = 10;

/** Calls `begin` when a gesture starts, and `move` with what that returned as often as it goes on. */
export function listenToGestures<State>(
  element: HTMLElement,
  signal: AbortSignal,
  begin: () => State,
  move: (state: State, from: Point, to: Point, factor: number) => void,
): void {
  const pressed = new Map<number, Point>();
  let start = { state: begin(), ...grip(pressed) };
  let wandered = false;
  const at = (event: MouseEvent): Point => ({ x: event.offsetX, y: event.offsetY });
  const listen = <K extends keyof HTMLElementEventMap>(type: K, listener: (event: HTMLElementEventMap[K]) => void) => {
    element.addEventListener(type, listener, { signal, capture: true });
  };
  const restart = () => {
    start = { state: begin(), ...grip(pressed) };
  };

  listen("wheel", (event) => {
    event.preventDefault();
    const steps = -event.deltaY * WHEEL_STEPS[event.deltaMode] * (event.ctrlKey ? PINCH_STEPS : 1);
    move(begin(), at(event), at(event), 2 ** steps);
    restart();
  });
  listen("pointerdown", (event) => {
    if (event.button !== 0 || event.ctrlKey) return;
    if (pressed.size === 0) wandered = false;
    pressed.set(event.pointerId, at(event));
    element.setPointerCapture(event.pointerId);
    restart();
  });
  listen("pointermove", (event) => {
    if (!pressed.has(event.pointerId)) return;
    pressed.set(event.pointerId, at(event));
    const { centre, spread } = grip(pressed);
    wandered ||= pressed.size > 1 || Math.hypot(centre.x - start.centre.x, centre.y - start.centre.y) > CLICK_DISTANCE;
    move(start.state, start.centre, centre, spread / start.spread);
  });
  for (const type of ["pointerup", "pointercancel"] as const) {
    listen(type, (event) => {
      if (pressed.delete(event.pointerId)) restart();
    });
  }
  listen("click", (event) => {
    if (wandered) event.stopImmediatePropagation();
  });
}

/** The middle of the pressed pointers, and how far they are from it; 1 for a single one, which has nothing to spread. */
function grip(pressed: ReadonlyMap<number, Point>): { centre: Point; spread: number } {
  const points = [...pressed.values()];
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  const centre = { x: mean(points.map((point) => point.x)), y: mean(points.map((point) => point.y)) };
  const spread = mean(points.map((point) => Math.hypot(point.x - centre.x, point.y - centre.y)));
  return { centre, spread: points.length > 1 ? Math.max(1, spread) : 1 };
}
