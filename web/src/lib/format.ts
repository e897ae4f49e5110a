/** Numbers, times and sizes as people read them in the language of the page. */
import { language, t } from "./words.svelte";

const locale = (): string => (language.now === "zh" ? "zh-CN" : "en");

export function number(value: number | null | undefined, digits = 4): string {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return new Intl.NumberFormat(locale(), {
    maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(size + 1))),
  }).format(value);
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, value > 0 ? Math.floor(Math.log10(value) / 3) : 0);
  return `${number(value / 1000 ** power, 3)} ${units[power]}`;
}

/** 3725 -> "1:02:05" */
export function duration(seconds: number | null | undefined): string {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** Seconds since the epoch -> "3 minutes ago". */
export function age(epoch: number | null | undefined, now = Date.now() / 1000): string {
  if (epoch == null) return t("common.unknown");
  const past = Math.max(0, now - epoch);
  const steps: [Intl.RelativeTimeFormatUnit, number][] = [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
    ["second", 1],
  ];
  const [unit, size] = steps.find(([, each]) => past >= each) ?? ["second", 1];
  return new Intl.RelativeTimeFormat(locale(), { numeric: "auto" }).format(-Math.floor(past / size), unit);
}

export const moment = (epoch: number | null | undefined): string =>
  epoch == null
    ? "–"
    : new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "short" }).format(epoch * 1000);

export const percent = (share: number | null | undefined): string =>
  share == null ? "–" : new Intl.NumberFormat(locale(), { style: "percent", maximumFractionDigits: 1 }).format(share);
