/** What a form remembers in this browser. */

/** A form as it was kept, over a fresh one; what cannot be read is as good as nothing. */
export function kept<T extends object>(key: string, fresh: T): T {
  try {
    return { ...fresh, ...(JSON.parse(localStorage.getItem(key) ?? "{}") as Partial<T>) };
  } catch {
    return { ...fresh };
  }
}

/** Keep a form whenever it changes, as long as the component lives that calls this. */
export function keep(key: string, form: object): void {
  $effect(() => localStorage.setItem(key, JSON.stringify(form)));
}
