/** Light, dark, or as the system has it. */
export type Theme = "system" | "light" | "dark";

const kept = localStorage.getItem("theme");
let chosen = $state<Theme>(kept === "light" || kept === "dark" ? kept : "system");

function apply(): void {
  if (chosen === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = chosen;
}
apply();

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
