// The footer: what the marks mean, and how much of the graph is drawn.

import type { FrameHeader } from "../frame";
import { edgeOpacity, edgeWidth, effectShade } from "../scale";
import type { EdgeKey } from "../selection";
import { formatEffect } from "../text";
import { effectColor, type Theme } from "../theme";

const SAMPLE_WEIGHTS = [0.05, 0.2, 0.5, 1];
const THRESHOLD_DIGITS = 2;
const SAMPLES: readonly { key: EdgeKey; label: string; meaning: string }[] = [
  {
    key: "attention",
    label: "attention",
    meaning: "Attention edges: what a token took from another, summed over heads",
  },
  { key: "residual", label: "residual", meaning: "Residual edges: what a token's own stream carried on" },
  { key: "ffn", label: "FFN", meaning: "FFN blocks (squares) and their edges: what the feed-forward block added" },
];

interface Props {
  theme: Theme;
  /** What colours say, when they say effects: of what, and how large one of full colour is. */
  effects: { of: string; largest: number } | null;
  nEdges: number;
  /** How many were painted when not all in view could be, else null. */
  nStrongest: number | null;
  header: FrameHeader;
}

export function Legend({ theme, effects, nEdges, nStrongest, header: { threshold, mass, renormalized } }: Props) {
  const edges = `${nEdges.toLocaleString("en")} ${nEdges === 1 ? "edge" : "edges"}`;
  const count =
    mass === null
      ? `${edges} above ${Number(threshold.toPrecision(THRESHOLD_DIGITS))}`
      : `${edges} ${nEdges === 1 ? "carries" : "carry"} ${Number((100 * mass).toPrecision(THRESHOLD_DIGITS))} % of the flow`;
  const help = [
    renormalized
      ? "Weights of a node's kept edges are divided by their sum."
      : "Weights are contributions as measured.",
    ...(nStrongest === null ? [] : ["Zoom in to see the weaker edges, too."]),
  ].join(" ");
  return (
    <div className="legend">
      {effects !== null && <EffectScale theme={theme} {...effects} />}
      {(effects === null ? SAMPLES : []).map(({ key, label, meaning }) => (
        <span key={key} className="legend-item" title={meaning}>
          <svg width="26" height="12" aria-hidden="true">
            <line x1="0" y1="6" x2="26" y2="6" stroke={theme.edge[key]} strokeWidth="3" />
            {key === "ffn" && <rect x="8" y="1" width="10" height="10" fill={theme.edge[key]} />}
          </svg>
          {label}
        </span>
      ))}
      <span className="legend-item" title="Wider and darker edges carry more: their contribution, from 0 to 1">
        {SAMPLE_WEIGHTS.map((weight) => (
          <span key={weight} className="legend-weight">
            <svg width="14" height="12" aria-hidden="true">
              <line
                x1="0"
                y1="6"
                x2="14"
                y2="6"
                stroke={theme.text}
                strokeWidth={edgeWidth(weight)}
                opacity={edgeOpacity(weight)}
              />
            </svg>
            {weight}
          </span>
        ))}
      </span>
      <span className="legend-count" data-testid="graph-count" title={help}>
        {count}
        {nStrongest !== null && `, ${nStrongest.toLocaleString("en")} strongest drawn`}
      </span>
    </div>
  );
}

const STOPS = Array.from({ length: 41 }, (_, index) => index / 20 - 1);

function EffectScale({ theme, of, largest }: { theme: Theme; of: string; largest: number }) {
  const colors = STOPS.map((share) => effectColor(theme, effectShade(share, 1)));
  return (
    <>
      <span
        className="legend-item"
        data-testid="graph-effect-scale"
        title={
          `Direct effect on the logit of ${of}. Blue raises it, orange lowers it. Edges of the residual stream carry sums, ` +
          "which may lie beyond the ends of the scale."
        }
      >
        <span className="legend-weight">{formatEffect(-largest)}</span>
        <span className="legend-scale" style={{ background: `linear-gradient(to right, ${colors.join(", ")})` }} />
        <span className="legend-weight">{formatEffect(largest)} logits</span>
      </span>
      <span
        className="legend-item"
        title="Only what is written to the target's own column has a direct effect on its logits; other edges reach them through later attention."
      >
        <svg width="26" height="12" aria-hidden="true">
          <line x1="0" y1="6" x2="26" y2="6" stroke={effectColor(theme, 0)} strokeWidth="3" opacity="0.3" />
        </svg>
        no direct effect
      </span>
    </>
  );
}
