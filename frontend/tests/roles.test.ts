import { describe, expect, it } from "vitest";

import { legendCount, legendItems } from "../src/legend";
import { describeRole, roleSpans } from "../src/roles";
import { withoutFirst } from "../src/graph";
import { makeGraph, type Edge } from "./example";

const EDGE: Edge = [0, 0, 0, 2, 0.2, { 3: 0.2 }];

describe("bands of speakers", () => {
  it("are runs of one role", () => {
    expect(roleSpans(["special", "user", "user", "assistant", "assistant", "continuation"])).toEqual([
      { role: "user", first: 1, last: 2 },
      { role: "assistant", first: 3, last: 4 },
      { role: "continuation", first: 5, last: 5 },
    ]);
  });

  it("end where another's token stands between", () => {
    expect(roleSpans(["user", "special", "user", null, "user"])).toEqual([
      { role: "user", first: 0, last: 0 },
      { role: "user", first: 2, last: 2 },
      { role: "user", first: 4, last: 4 },
    ]);
  });

  it("are none for plain text", () => {
    expect(roleSpans(null)).toEqual([]);
    expect(roleSpans(["special", null, null])).toEqual([]);
  });

  it("have words", () => {
    expect(describeRole(["special", "tool"], 1)).toBe("tool’s answer");
    expect(describeRole([null], 0)).toBeNull();
    expect(describeRole(null, 0)).toBeNull();
  });
});

describe("the legend", () => {
  const labels = (graph: Parameters<typeof legendItems>[0], coloring: "contribution" | "effect" = "contribution") =>
    legendItems(graph, coloring).map((item) => item.label);

  it("names the kinds of edges, their weights, and only the speakers that are there", () => {
    expect(labels(makeGraph([EDGE]))).toEqual(["attention", "residual", "FFN", "contribution"]);
    const roles = ["special", "continuation", "user"] as const;
    expect(labels(makeGraph([EDGE], { roles }))).toEqual([
      "attention",
      "residual",
      "FFN",
      "contribution",
      "user",
      "continuation",
      "special",
    ]);
  });

  it("has the scale of effects with its unit", () => {
    const asked = makeGraph([[0, 0, 0, 2, 0.2, { 3: 0.2 }, 1.5]], { effect_of: " Mary" });
    expect(labels(asked, "effect")).toEqual(["logits", "no direct effect", "contribution"]);
    expect(legendItems(asked, "effect")[0]).toMatchObject({ least: "-1.500", most: "+1.500" });
    expect(legendItems(asked, "effect")[0].meaning).toContain("logit of ·Mary.");
  });

  it("counts what there is, what is hidden and what is drawn", () => {
    const graph = makeGraph([EDGE, [1, 0, 2, 2, 0.5]]);
    expect(legendCount(graph, null)).toBe("2 edges above 0.04");
    expect(legendCount(withoutFirst(graph), 1)).toBe(
      "2 edges above 0.04, edges of the first token hidden: 1, 1 strongest drawn",
    );
    expect(legendCount(makeGraph([EDGE], { mass: 0.9 }), null)).toBe("1 edge carries 90 % of the flow");
    expect(legendCount(makeGraph([EDGE], { targets: [1, 2] }), null)).toBe("tokens 1 to 2: 1 edge above 0.04");
    expect(legendCount(makeGraph([EDGE], { targets: [0, 2] }), null)).toBe("2 tokens from 0 to 2: 1 edge above 0.04");
  });
});
