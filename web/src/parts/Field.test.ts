import { cleanup, fireEvent, render, screen } from "@testing-library/svelte";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { FormField } from "../lib/api/shapes";
import Field from "./Field.svelte";

const setting = (changes: Partial<FormField>): FormField => ({
  key: "train.learning_rate",
  label: "Learning rate",
  help: "Peak learning rate.",
  kind: "number",
  group: "train",
  default: 0,
  least: 0,
  ...changes,
});

afterEach(cleanup);

describe("a setting", () => {
  it("gives numbers as numbers and anything else as it was typed", async () => {
    const onchange = vi.fn();
    render(Field, { field: setting({}), value: undefined, onchange });
    const input = screen.getByLabelText("Learning rate");
    await fireEvent.input(input, { target: { value: "2e-4" } });
    expect(onchange).toHaveBeenLastCalledWith(2e-4);
    await fireEvent.input(input, { target: { value: "three" } });
    expect(onchange).toHaveBeenLastCalledWith("three");
    await fireEvent.input(input, { target: { value: "" } });
    expect(onchange).toHaveBeenLastCalledWith(undefined);
  });

  it("does not rewrite what is being typed", async () => {
    const props = { field: setting({}), value: undefined as unknown, onchange: () => {} };
    const { rerender } = render(Field, props);
    const input = screen.getByLabelText<HTMLInputElement>("Learning rate");
    await fireEvent.focus(input);
    await fireEvent.input(input, { target: { value: "1e-" } });
    await rerender({ ...props, value: "1e-" });
    await fireEvent.input(input, { target: { value: "1e-4" } });
    await rerender({ ...props, value: 1e-4 });
    expect(input.value).toBe("1e-4");
    await fireEvent.blur(input);
    expect(Number(input.value)).toBe(1e-4);
  });

  it("shows what is in force where nothing was given, and goes back to it", async () => {
    const onchange = vi.fn();
    const field = setting({ key: "train.gradient_checkpointing", label: "Recompute", kind: "flag", default: false });
    const { rerender } = render(Field, { field, value: undefined, resolved: true, onchange });
    expect(screen.getByLabelText<HTMLInputElement>("Recompute").checked).toBe(true);
    expect(screen.queryByRole("button")).toBeNull();
    await rerender({ field, value: false, resolved: false, onchange });
    await fireEvent.click(screen.getByRole("button", { name: /Recompute/ }));
    expect(onchange).toHaveBeenLastCalledWith(undefined);
  });

  it("ties its help and its problem to the control", () => {
    render(Field, { field: setting({}), value: "x", problem: "expected a number", onchange: () => {} });
    const input = screen.getByLabelText("Learning rate");
    expect(input.getAttribute("aria-invalid")).toBe("true");
    const texts = (input.getAttribute("aria-describedby") ?? "").split(" ").map((id) => document.getElementById(id));
    expect(texts.map((each) => each?.textContent ?? "").join(" ")).toMatch(
      /Peak learning rate[\s\S]*expected a number/,
    );
  });

  it("keeps a chosen value that the shelf does not list", () => {
    const field = setting({ key: "model.dtype", label: "Format", kind: "choice", choices: ["auto", "float32"] });
    render(Field, { field, value: "float8", problem: "no such format", onchange: () => {} });
    expect(screen.getByLabelText<HTMLSelectElement>("Format").value).toBe("float8");
  });
});
