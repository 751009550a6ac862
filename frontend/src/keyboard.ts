// Moving the keyboard's focus over the graph: which node comes next, as arithmetic.

import { nodeAt, slotCount, slotOf, type NodeRef } from "./names";

const MOVES: Record<string, { columns: number; slots: number }> = {
  ArrowLeft: { columns: -1, slots: 0 },
  ArrowRight: { columns: 1, slots: 0 },
  ArrowUp: { columns: 0, slots: 1 },
  ArrowDown: { columns: 0, slots: -1 },
  PageUp: { columns: 0, slots: 3 },
  PageDown: { columns: 0, slots: -3 },
  Home: { columns: -Infinity, slots: 0 },
  End: { columns: Infinity, slots: 0 },
};

/** The node that a key moves to, stopping at the graph's borders; null when the key is not one that moves. */
export function moveFocus(node: NodeRef, key: string, nLayers: number, nTokens: number): NodeRef | null {
  if (!Object.hasOwn(MOVES, key)) return null;
  const move = MOVES[key];
  const position = Math.min(nTokens - 1, Math.max(0, node.position + move.columns));
  const slot = Math.min(slotCount(nLayers) - 1, Math.max(0, slotOf(node) + move.slots));
  return nodeAt(position, slot);
}

/** The entry after `current` in a ring of choices, or before it for a step of -1; the first when none is current. */
export function cycle(count: number, current: number, step: 1 | -1): number {
  if (current < 0) return step === 1 ? 0 : count - 1;
  return (current + step + count) % count;
}
