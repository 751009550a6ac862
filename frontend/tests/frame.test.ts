import { describe, expect, it } from "vitest";

import { decodeFrame, FrameError } from "../src/frame";
import { encode, goldenBytes } from "./example";

// The same numbers stand in tests/components/test_frame.py, which writes the golden file.
describe("the golden frame that Python wrote", () => {
  const { header, arrays } = decodeFrame(goldenBytes());

  it("has its header", () => {
    expect(header).toEqual({
      version: 1,
      trace: "demo\n1 2 3",
      n_layers: 2,
      tokens: ["<bos>", " Mary", "Mary", "\n", "שלום", "👩‍👩‍👧", "<0xE2>", "<b>&amp;"],
      target: 2,
      targets: [2],
      threshold: 0.04,
      renormalized: true,
      prediction: " gave",
      probability: 0.75,
      selection: { type: "edge", key: "attention", from: "I0_1", to: "A1_2" },
      effect_of: "·gave − ⏎",
      mass: null,
      compared: null,
      highlight: null,
      roles: ["special", "system", "user", "user", "assistant", "tool", "continuation", null],
    });
  });

  it("has its arrays", () => {
    expect([...arrays.kind]).toEqual([4, 2, 3, 1, 0, 0, 4, 1, 4, 0, 1]);
    expect([...arrays.layer]).toEqual([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
    expect([...arrays.source]).toEqual([2, 2, 2, 2, 2, 1, 2, 2, 1, 0, 1]);
    expect([...arrays.destination]).toEqual([2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]);
    expect([...arrays.weight]).toEqual([0.625, 0.375, 0.375, 0.5, 0.125, 0.375, 1, 1, 1, 0.25, 0.75]);
    expect([...arrays.heads_start]).toEqual([0, 0, 0, 0, 0, 1, 3, 3, 3, 3, 4, 4]);
    expect([...arrays.head]).toEqual([3, 0, 5, 7]);
    expect([...arrays.head_weight]).toEqual([0.125, 0.25, 0.125, 0.25]);
    expect([...(arrays.effect ?? [])]).toEqual([3, 0.5, 0.5, 2, -0.25, 1.25, 1, 1, NaN, NaN, NaN]);
  });

  it("is read from the middle of a larger message, too", () => {
    const message = new Uint8Array(goldenBytes().length + 3);
    message.set(goldenBytes(), 3);
    expect(decodeFrame(message.subarray(3)).arrays.weight[0]).toBe(0.625);
  });
});

describe("bytes that are no frame", () => {
  const message = (bytes: Uint8Array) => {
    try {
      decodeFrame(bytes);
    } catch (error) {
      if (error instanceof FrameError) return error.message;
      throw error;
    }
    return "no error";
  };
  const header = { version: 1, trace: "t", n_layers: 1, tokens: ["a"], target: 0, threshold: 0.1 };
  const empty = (dtype: string, length = 0) => ({ dtype, offset: 0, length });
  const arrays = {
    kind: empty("u1"),
    layer: empty("u2"),
    source: empty("u4"),
    destination: empty("u4"),
    weight: empty("f4"),
    heads_start: empty("u4", 1),
    head: empty("u2"),
    head_weight: empty("f4"),
  };

  it("is not what a frame with several targets is", () => {
    const several = { ...header, tokens: ["a", "b", "c"], target: 2, targets: [0, 2], arrays };
    expect(decodeFrame(encode(several, new Uint8Array(8))).header.targets).toEqual([0, 2]);
    expect(decodeFrame(encode({ ...several, targets: null }, new Uint8Array(8))).header.targets).toEqual([2]);
  });

  it.each([
    ["no bytes", new Uint8Array(), /0 bytes do not start with LTT1/],
    ["other bytes", new Uint8Array(40), /do not start with LTT1/],
    ["a cut header", goldenBytes().subarray(0, 60), /cut short/],
    ["a cut array", goldenBytes().subarray(0, goldenBytes().length - 16), /cut short: its array "effect"/],
    ["a later version", encode({ version: 2 }), /format version 2; the page knows version 1\. Rebuild/],
    ["a header without tokens", encode({ ...header, tokens: [] }), /"tokens" is not a list of at least one string/],
    ["a target beyond the tokens", encode({ ...header, target: 1 }), /"target" is not a position below 1/],
    ["several targets beyond the tokens", encode({ ...header, targets: [0, 1] }), /"targets" is not a list of rising/],
    ["no targets", encode({ ...header, targets: [] }), /"targets" is not a list of rising positions that ends with 0/],
    ["targets out of order", encode({ ...header, tokens: ["a", "b"], targets: [1, 0] }), /"targets" is not a list/],
    ["targets without the target", encode({ ...header, tokens: ["a", "b"], targets: [0, 1] }), /that ends with 0/],
    ["no arrays", encode(header), /array "kind" is missing/],
    [
      "an array of another type",
      encode({ ...header, arrays: { ...arrays, weight: empty("u4") } }),
      /"weight" is missing or/,
    ],
    [
      "a question without effects",
      encode({ ...header, effect_of: "a", arrays }, new Uint8Array(8)),
      /array "effect" is missing or is not of type f4/,
    ],
    [
      "effects of other edges",
      encode({ ...header, effect_of: "a", arrays: { ...arrays, effect: empty("f4", 1) } }, new Uint8Array(8)),
      /array "effect" has 1 entries for 0 edges/,
    ],
    ["roles of other tokens", encode({ ...header, roles: [] }), /"roles" is not a list of 1 roles, one for each token/],
    ["a role that nobody has", encode({ ...header, roles: ["king"] }), /"roles" is not a list of 1 roles/],
    [
      "an edge outside of the graph",
      encode(
        {
          ...header,
          arrays: {
            kind: { dtype: "u1", offset: 24, length: 1 },
            layer: { dtype: "u2", offset: 0, length: 1 },
            source: { dtype: "u4", offset: 4, length: 1 },
            destination: { dtype: "u4", offset: 8, length: 1 },
            weight: { dtype: "f4", offset: 8, length: 1 },
            heads_start: { dtype: "u4", offset: 16, length: 2 },
            head: empty("u2"),
            head_weight: empty("f4"),
          },
        },
        new Uint8Array(32).fill(7, 4, 8),
      ),
      /edge 0 lies outside/,
    ],
  ])("%s is refused with a sentence", (_, bytes, expected) => {
    expect(message(bytes)).toMatch(expected);
  });

  it("a highlight and a mass are read, and anything else in their place is none", () => {
    const read = (extra: object) => decodeFrame(encode({ ...header, ...extra, arrays }, new Uint8Array(8))).header;
    expect(read({ highlight: { layer: 2, head: 1 }, mass: 0.9 })).toMatchObject({
      highlight: { layer: 2, head: 1 },
      mass: 0.9,
    });
    expect(read({ highlight: { layer: -1, head: 1 }, mass: "all" })).toMatchObject({ highlight: null, mass: null });
    expect(read({})).toMatchObject({ highlight: null, mass: null });
  });

  it("roles may be absent, and tokens may have none", () => {
    const read = (extra: object) =>
      decodeFrame(encode({ ...header, ...extra, arrays }, new Uint8Array(8))).header.roles;
    expect([read({}), read({ roles: null }), read({ roles: [null] })]).toEqual([null, null, [null]]);
  });

  it("a graph without edges is a graph", () => {
    const { header: decoded, arrays: read } = decodeFrame(encode({ ...header, arrays }, new Uint8Array(8)));
    expect(read.kind).toHaveLength(0);
    expect([decoded.effect_of, read.effect]).toEqual([null, null]);
  });
});
