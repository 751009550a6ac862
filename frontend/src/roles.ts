// Whose message a token belongs to, and the runs of tokens that one band marks. Colours are in `theme.ts`.

/** Speakers in the order of the legend. "special" is what a chat template or the tokenizer wrote. */
export const SPEAKERS = ["system", "user", "assistant", "tool", "continuation"] as const;
export type Speaker = (typeof SPEAKERS)[number];
export type Role = Speaker | "special";

export function isRole(value: unknown): value is Role {
  return value === "special" || (SPEAKERS as readonly unknown[]).includes(value);
}

/** Tokens `first` to `last` of one speaker. */
export interface RoleSpan {
  role: Speaker;
  first: number;
  last: number;
}

/** Runs of equal roles; special tokens and plain text have no band. */
export function roleSpans(roles: readonly (Role | null)[] | null): RoleSpan[] {
  const spans: RoleSpan[] = [];
  (roles ?? []).forEach((role, position) => {
    const open = spans.at(-1);
    if (role === null || role === "special") return;
    if (open?.role === role && open.last === position - 1) open.last = position;
    else spans.push({ role, first: position, last: position });
  });
  return spans;
}

const OF_ROLE: Record<Role, string> = {
  system: "system message",
  user: "user\u2019s message",
  assistant: "assistant\u2019s message",
  tool: "tool\u2019s answer",
  continuation: "generated",
  special: "special token",
};

/** The role in words, null where there is none. */
export function describeRole(roles: readonly (Role | null)[] | null, position: number): string | null {
  const role = roles?.[position] ?? null;
  return role === null ? null : OF_ROLE[role];
}
