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
