import { describe, expect, it } from "vitest";

import { cycle, moveFocus } from "../src/keyboard";
import { initialSelection, isSelection, reconcile, sameSelection, selectHere, type Selection } from "../src/selection";

const node = (name: string): Selection => ({ type: "node", node: name });
const A = node("A0_0");
const B = node("A1_1");
const edge: Selection = { type: "edge", key: "attention", from: "I0_1", to: "A1_2" };

describe("selections", () => {
  it("are compared by what they name", () => {
    expect(sameSelection(edge, { ...edge })).toBe(true);
    expect(sameSelection(edge, { ...edge, key: "residual" })).toBe(false);
    expect(sameSelection(A, B)).toBe(false);
    expect(sameSelection(A, edge)).toBe(false);
    expect(sameSelection(null, null)).toBe(true);
    expect(sameSelection(null, A)).toBe(false);
  });

  it.each([null, 3, {}, { type: "node" }, { type: "edge", key: "other", from: "a", to: "b" }])(
    "%o is none",
    (value) => {
      expect(isSelection(value)).toBe(false);
    },
  );
});

describe("a new frame", () => {
  it("brings Python's selection", () => {
    expect(reconcile(initialSelection(A), B, true).shown).toBe(B);
    expect(reconcile(initialSelection(A), null, true).shown).toBeNull();
  });

  it("that answers the click settles it", () => {
    const state = reconcile(selectHere(initialSelection(null), A), A, true);
    expect(state).toEqual(initialSelection(A));
  });

  it("made before Python heard of the click does not undo it", () => {
    const clicked = selectHere(initialSelection(null), A);
    const moved = reconcile(clicked, null, true);
    expect(moved.shown).toBe(A);
    expect(reconcile(moved, A, true)).toEqual(initialSelection(A));
  });

  it("that answers the first of two clicks leaves the second", () => {
    const twice = selectHere(selectHere(initialSelection(null), A), B);
    const first = reconcile(twice, A, true);
    expect(first.shown).toBe(B);
    expect(reconcile(first, B, true)).toEqual(initialSelection(B));
  });

  it("that answers the last click only answers all", () => {
    const twice = selectHere(selectHere(initialSelection(null), A), B);
    expect(reconcile(twice, B, true)).toEqual(initialSelection(B));
  });

  it("with a selection of Python's own wins", () => {
    expect(reconcile(selectHere(initialSelection(null), A), edge, true).shown).toBe(edge);
  });

  it("of another prompt forgets the clicks on the old one", () => {
    expect(reconcile(selectHere(initialSelection(A), B), null, false)).toEqual(initialSelection(null));
  });
});

describe("the keyboard", () => {
  const start = { kind: "A", layer: 0, position: 1 } as const;

  it.each([
    ["ArrowUp", { kind: "M", layer: 0, position: 1 }],
    ["ArrowDown", { kind: "X", layer: 0, position: 1 }],
    ["ArrowLeft", { kind: "A", layer: 0, position: 0 }],
    ["ArrowRight", { kind: "A", layer: 0, position: 2 }],
    ["PageUp", { kind: "A", layer: 1, position: 1 }],
    ["PageDown", { kind: "X", layer: 0, position: 1 }],
    ["Home", { kind: "A", layer: 0, position: 0 }],
    ["End", { kind: "A", layer: 0, position: 2 }],
  ])("%s moves the focus", (key, expected) => {
    expect(moveFocus(start, key, 2, 3)).toEqual(expected);
  });

  it("stops at the borders and ignores other keys", () => {
    expect(moveFocus({ kind: "I", layer: 1, position: 2 }, "ArrowUp", 2, 3)).toEqual({
      kind: "I",
      layer: 1,
      position: 2,
    });
    expect(moveFocus(start, "x", 2, 3)).toBeNull();
    expect(moveFocus(start, "toString", 2, 3)).toBeNull();
  });

  it("cycles through choices", () => {
    expect([cycle(3, -1, 1), cycle(3, 2, 1), cycle(3, 0, -1), cycle(3, -1, -1)]).toEqual([0, 0, 2, 2]);
  });
});
