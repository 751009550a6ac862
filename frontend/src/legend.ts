// What the legend says, for the page and for saved pictures alike. How its marks look is in `ui/Legend.tsx` and `paint/legend.ts`.

import type { Compared } from "./frame";
import type { Graph } from "./graph";
import { describeTargets } from "./names";
import { SPEAKERS, type Speaker } from "./roles";
import type { Coloring } from "./scale";
import type { EdgeKey } from "./selection";
import { formatEffect, visibleText } from "./text";

export const SAMPLE_WEIGHTS = [0.05, 0.2, 0.5, 1];
const FIGURES = 2;

type Mark =
  | { mark: "edge"; key: EdgeKey }
  | { mark: "weights"; weights: readonly number[] }
  | { mark: "scale"; least: string; most: string }
  | { mark: "neutral" }
  | { mark: "only" }
  | { mark: "role"; role: Speaker }
  | { mark: "special" };
/** `meaning` is the longer sentence. */
export type LegendItem = Mark & { label: string; meaning: string };

const KINDS: readonly LegendItem[] = [
  {
    mark: "edge",
    key: "attention",
    label: "attention",
    meaning: "Attention edges: what a token took from another, summed over heads",
  },
  {
    mark: "edge",
    key: "residual",
    label: "residual",
    meaning: "Residual edges: what a token's own stream carried on",
  },
  {
    mark: "edge",
    key: "ffn",
    label: "FFN",
    meaning: "FFN blocks (squares) and their edges: what the feed-forward block added",
  },
];
const WEIGHTS: LegendItem = {
  mark: "weights",
  weights: SAMPLE_WEIGHTS,
  label: "contribution",
  meaning: "Wider and darker edges carry more: their contribution, a share from 0 to 1",
};

export function legendItems(graph: Graph, coloring: Coloring): LegendItem[] {
  const { effect_of: of, compared } = graph.header;
  const isShaded = coloring === "effect" && of !== null;
  if (compared !== null) {
    const colors = isShaded ? changeItems(compared, graph.largestEffect) : KINDS;
    return [...colors, onlyItem(compared), LARGER, ...roleItems(graph)];
  }
  return [...(isShaded ? effectItems(of, graph) : KINDS), WEIGHTS, ...roleItems(graph)];
}

function changeItems({ first, second }: Compared, largest: number): LegendItem[] {
  return [
    {
      mark: "scale",
      least: formatEffect(-largest),
      most: formatEffect(largest),
      label: "change",
      meaning: `Contribution in ${second} less that in ${first}, whether the edge is drawn there or not. Blue: more in ${second}, orange: less.`,
    },
  ];
}

function onlyItem({ first, second }: Compared): LegendItem {
  return {
    mark: "only",
    label: "in one only",
    meaning: `Dashed: in the graph of ${first} or of ${second} alone; in the other it is below the threshold, or not on the routes.`,
  };
}

const LARGER: LegendItem = { ...WEIGHTS, meaning: `${WEIGHTS.meaning}; of two the larger one` };

function effectItems(of: string, { header: { targets }, largestEffect: largest }: Graph): LegendItem[] {
  return [
    {
      mark: "scale",
      least: formatEffect(-largest),
      most: formatEffect(largest),
      label: "logits",
      meaning:
        `Direct effect on the logit of ${visibleText(of)}. Blue raises it, orange lowers it. Edges of the residual stream carry sums, ` +
        "which may lie beyond the ends of the scale.",
    },
    {
      mark: "neutral",
      label: "no direct effect",
      meaning:
        targets.length > 1
          ? "The question is about the last target. Only what is written to its own column has a direct effect on its logits; other edges reach " +
            "them through later attention."
          : "Only what is written to the target's own column has a direct effect on its logits; other edges reach them through later attention.",
    },
  ];
}

function roleItems({ header: { roles } }: Graph): LegendItem[] {
  const there = new Set(roles);
  const speakers = SPEAKERS.filter((role) => there.has(role)).map((role): LegendItem => ({
    mark: "role",
    role,
    label: role,
    meaning: role === "continuation" ? "Tokens that the model generated" : `Tokens of the ${role}'s messages`,
  }));
  const special: LegendItem = {
    mark: "special",
    label: "special",
    meaning: "Special tokens and what else the chat template or the tokenizer wrote: outlined and in italics",
  };
  return there.has("special") ? [...speakers, special] : speakers;
}

/** How much of the graph is there, and how much of that is drawn. */
export function legendCount(
  { header: { threshold, mass, targets }, nEdges, nHidden }: Graph,
  nStrongest: number | null,
): string {
  const edges = `${nEdges.toLocaleString("en")} ${nEdges === 1 ? "edge" : "edges"}`;
  const count =
    mass === null
      ? `${edges} above ${Number(threshold.toPrecision(FIGURES))}`
      : `${edges} ${nEdges === 1 ? "carries" : "carry"} ${Number((100 * mass).toPrecision(FIGURES))} % of the flow`;
  return [
    targets.length > 1 ? `${describeTargets(targets)}: ${count}` : count,
    ...(nHidden === null ? [] : [`edges of the first token hidden: ${nHidden.toLocaleString("en")}`]),
    ...(nStrongest === null ? [] : [`${nStrongest.toLocaleString("en")} strongest drawn`]),
  ].join(", ");
}
