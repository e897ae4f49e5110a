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

let spacing = $state<Density>(localStorage.getItem("density") === "dense" ? "dense" : "roomy");
document.documentElement.dataset["density"] = spacing;

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
