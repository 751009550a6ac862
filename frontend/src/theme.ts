// Colours and fonts: neutral ones from Streamlit's CSS variables, edges from the colour-blind-safe Okabe-Ito family.
// That those to be told apart can be, by everyone, is tested in `colours.test.ts`.

import type { Speaker } from "./roles";
import type { EdgeKey } from "./selection";

export interface Theme {
  text: string;
  background: string;
  band: string;
  font: string;
  codeFont: string;
  edge: Record<EdgeKey, string>;
  /** The two ends of the scale of direct effects, and its middle; "#rrggbb". */
  effect: { raises: string; neutral: string; lowers: string };
  selection: string;
  role: Record<Speaker, string>;
  isDark: boolean;
}

/** Tints of the same hues that stand out from a white and from a near-black page; the selection is like none of the effects. */
export const ON_LIGHT = { attention: "#0072b2", ffn: "#009e73", residual: "#7d838c", selection: "#7a0c5a" };
export const ON_DARK = { attention: "#56b4e9", ffn: "#2dc79a", residual: "#9aa1ac", selection: "#ffe81a" };
/** Bands of speakers, apart from each other in hue and lightness; none is the colour of an edge. */
export const ROLES_ON_LIGHT: Record<Speaker, string> = {
  system: "#7a1fe0",
  user: "#b08a00",
  assistant: "#4c3245",
  tool: "#8a2a10",
  continuation: "#d615b0",
};
export const ROLES_ON_DARK: Record<Speaker, string> = {
  system: "#8a5cff",
  user: "#f2df80",
  assistant: "#b0605c",
  tool: "#ff4d1a",
  continuation: "#ff59d4",
};
const DARK_BELOW = 0.4;

const FALLBACK = {
  "--st-text-color": "#31333f",
  "--st-background-color": "#ffffff",
  "--st-secondary-background-color": "#f0f2f6",
  "--st-font": "sans-serif",
  "--st-code-font": "monospace",
};

export function readTheme(element: Element): Theme {
  const style = getComputedStyle(element);
  const read = (name: keyof typeof FALLBACK) => style.getPropertyValue(name).trim() || FALLBACK[name];
  const background = read("--st-background-color");
  const isDark = luminance(background) < DARK_BELOW;
  const shade = (name: string) => style.getPropertyValue(`--effect-${name}-on-${isDark ? "dark" : "light"}`).trim();
  const { selection, ...edge } = isDark ? ON_DARK : ON_LIGHT;
  return {
    text: read("--st-text-color"),
    background,
    band: read("--st-secondary-background-color"),
    font: read("--st-font"),
    codeFont: read("--st-code-font"),
    edge,
    effect: { raises: shade("raises"), neutral: shade("neutral"), lowers: shade("lowers") },
    selection,
    role: isDark ? ROLES_ON_DARK : ROLES_ON_LIGHT,
    isDark,
  };
}

/** The colour at a place on the scale of direct effects: -1 lowers most, 0 is neutral, 1 raises most. */
export function effectColor({ effect }: Pick<Theme, "effect">, shade: number): string {
  return mixed(effect.neutral, shade < 0 ? effect.lowers : effect.raises, Math.min(1, Math.abs(shade)));
}

/** A colour between two, all of them "#rrggbb". */
export function mixed(from: string, to: string, share: number): string {
  const channel = (color: string, index: number) => parseInt(color.slice(1 + 2 * index, 3 + 2 * index), 16);
  const mix = (index: number) => Math.round((1 - share) * channel(from, index) + share * channel(to, index));
  return `#${[0, 1, 2].map((index) => mix(index).toString(16).padStart(2, "0")).join("")}`;
}

/** Perceived lightness, 0 to 1, of any CSS colour: a canvas knows how to read them all. */
function luminance(color: string): number {
  const context = document.createElement("canvas").getContext("2d");
  if (context === null) return 1;
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  return (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
}
