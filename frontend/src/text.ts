// How a token's text is made visible and made to fit. Tokens are text, never markup; fonts and canvases are elsewhere.

const SPACE = "\u00b7"; // middle dot
const GLYPHS: Record<string, string> = {
  " ": SPACE,
  "\u00a0": "\u237d",
  "\n": "\u23ce",
  "\r": "\u240d",
  "\t": "\u21e5",
};
const REPLACED = /[ \u00a0\p{Cc}]/gu;
const HAS_INK = /[^\p{Cc}\p{Cf}\p{Z}]/u;
const ELLIPSIS = "\u2026";
/** Of contributions and effects, as in the tables beside the graph. */
const DECIMALS = 3;

/** Spaces, newlines and control characters become glyphs, so that " Mary" differs from "Mary"; the rest is untouched. */
export function visibleText(token: string): string {
  if (token === "") return "\u2205";
  const text = token.replace(REPLACED, (char) => GLYPHS[char] ?? `\\x${hex(char, 2)}`);
  // A token of invisible characters alone (a lone joiner, a byte-order mark) would show as nothing at all.
  return HAS_INK.test(text) ? text : Array.from(text, (char) => `U+${hex(char, 4)}`).join(" ");
}

export function quoteToken(token: string): string {
  return `\u201c${visibleText(token)}\u201d`;
}

function hex(char: string, digits: number): string {
  return (char.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(digits, "0");
}

const segmenter = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** The longest beginning, with an ellipsis, that is at most `width` wide; whole characters as a reader sees them. */
export function fitText(text: string, width: number, measure: (text: string) => number): string {
  if (measure(text) <= width) return text;
  const characters = Array.from(segmenter.segment(text), (part) => part.segment);
  let low = 0;
  let high = characters.length;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (measure(characters.slice(0, middle).join("") + ELLIPSIS) <= width) low = middle;
    else high = middle - 1;
  }
  return characters.slice(0, low).join("") + ELLIPSIS;
}

/** Positions whose token contains the query, in the raw text or as shown; none for an empty query. */
export function findTokens(tokens: readonly string[], query: string): number[] {
  const wanted = query.toLocaleLowerCase();
  if (wanted === "") return [];
  return tokens.flatMap((token, position) => {
    const found = [token, visibleText(token)].some((text) => text.toLocaleLowerCase().includes(wanted));
    return found ? [position] : [];
  });
}

/** A signed number of logits, as everywhere on the page: +1.230, -0.045. */
export function formatEffect(effect: number): string {
  const figures = effect.toFixed(DECIMALS);
  return Number(figures) === 0 ? `+${(0).toFixed(DECIMALS)}` : effect > 0 ? `+${figures}` : figures;
}

/** A contribution, or how it is in two graphs: 0.123 → 0.456, with a dash where one has none to tell. */
export function formatContributions(contributions: readonly (number | null)[]): string {
  return contributions.map((weight) => (weight === null ? "\u2013" : formatWeight(weight))).join(" \u2192 ");
}

/** A share of 1, as everywhere on the page: 0.970, 0.043; what would round to nothing is <0.001. */
export function formatWeight(weight: number): string {
  const least = 10 ** -DECIMALS;
  return weight > 0 && weight < least ? `<${least.toFixed(DECIMALS)}` : weight.toFixed(DECIMALS);
}
