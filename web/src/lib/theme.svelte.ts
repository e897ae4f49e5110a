/** Light, dark, or as the system has it; the style sheet knows only the first two. */
export type Theme = "system" | "light" | "dark";

const kept = localStorage.getItem("theme");
let chosen = $state<Theme>(kept === "light" || kept === "dark" ? kept : "system");

const dark = matchMedia("(prefers-color-scheme: dark)");

function apply(): void {
  document.documentElement.dataset["theme"] = chosen === "system" ? (dark.matches ? "dark" : "light") : chosen;
}
apply();
dark.addEventListener("change", apply);

export const theme = {
  get now(): Theme {
    return chosen;
  },
  choose(next: Theme): void {
    chosen = next;
    localStorage.setItem("theme", next);
    apply();
  },
};

/** How much space there is around things. */
export type Density = "roomy" | "dense";

const keptDensity: Density = localStorage.getItem("density") === "dense" ? "dense" : "roomy";
let spacing = $state<Density>(keptDensity);
document.documentElement.dataset["density"] = keptDensity;

export const density = {
  get now(): Density {
    return spacing;
  },
  choose(next: Density): void {
    spacing = next;
    localStorage.setItem("density", next);
    document.documentElement.dataset["density"] = next;
  },
};
