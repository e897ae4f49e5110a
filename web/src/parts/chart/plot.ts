/** A plot on a canvas: drawn at most four times a second, only while it is seen, in the colours of the theme. */
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import "./series.css";
import { paced } from "../../lib/pace";
import { colour, columns, dash, withSmoothed, type Columns, type View } from "./view";

interface Heard {
  zoomed(range: [number, number] | null): void;
  /** Place in the columns below the cursor; null where there is none. */
  cursor(index: number | null): void;
}

export class Plot {
  #view: View | null = null;
  #plot: uPlot | null = null;
  #shape = "";
  #seen = true;
  #columns: Columns = [[]];
  readonly #pace = paced(() => this.#draw());
  readonly #watchers: { disconnect(): void }[] = [];
  readonly #retint = () => {
    this.#shape = "";
    this.#pace.ask();
  };

  constructor(
    private readonly host: HTMLElement,
    private readonly sync: string,
    private readonly height: number,
    private readonly heard: Heard,
  ) {
    const size = new ResizeObserver(() => this.#resize());
    size.observe(host);
    const sight = new IntersectionObserver(
      ([entry]) => {
        this.#seen = entry?.isIntersecting ?? true;
        if (this.#seen) this.#pace.ask();
      },
      { rootMargin: "200px" },
    );
    sight.observe(host);
    const theme = new MutationObserver(this.#retint);
    theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    this.#watchers.push(size, sight, theme);
  }

  get columns(): Columns {
    return this.#columns;
  }

  /** What is seen of x now. */
  get range(): [number, number] | null {
    const { min, max } = this.#plot?.scales["x"] ?? {};
    return min == null || max == null ? null : [min, max];
  }

  show(view: View): void {
    this.#view = view;
    this.#pace.ask();
  }

  destroy(): void {
    this.#pace.stop();
    for (const each of this.#watchers) each.disconnect();
    this.#plot?.destroy();
  }

  /** The plot on the ground of the page, as a PNG file. */
  async picture(): Promise<Blob | null> {
    const drawn = this.#plot?.ctx.canvas;
    if (!drawn || !this.#view) return null;
    const head = 28 * devicePixelRatio;
    const canvas = document.createElement("canvas");
    canvas.width = drawn.width;
    canvas.height = drawn.height + head;
    const context = canvas.getContext("2d")!;
    context.fillStyle = this.#tint("--panel");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(drawn, 0, head);
    context.font = `${14 * devicePixelRatio}px sans-serif`;
    context.textBaseline = "middle";
    let x = 10 * devicePixelRatio;
    const write = (text: string, tint: string) => {
      context.fillStyle = this.#tint(tint);
      context.fillText(text, x, head / 2);
      x += context.measureText(text).width + 16 * devicePixelRatio;
    };
    write(this.#view.title, "--text");
    for (const { label, slot } of this.#view.lines) write(label, colour(slot));
    return new Promise((done) => canvas.toBlob(done));
  }

  #tint(name: string): string {
    return getComputedStyle(this.host).getPropertyValue(name).trim() || "#888";
  }

  #resize(): void {
    if (this.host.clientWidth) this.#plot?.setSize({ width: this.host.clientWidth, height: this.height });
  }

  #draw(): void {
    const view = this.#view;
    if (!view || !this.#seen || !this.host.clientWidth) return;
    this.#columns = columns(view.lines, view.log);
    const data = withSmoothed(this.#columns, view.smoothing) as unknown as uPlot.AlignedData;
    const shape = JSON.stringify([view.lines.map(({ label, slot }) => [label, slot]), view.smoothing > 0, view.log]);
    if (this.#plot && shape === this.#shape) {
      this.#plot.setData(data);
      return;
    }
    this.#shape = shape;
    this.#plot?.destroy();
    this.#plot = new uPlot(this.#options(view), data, this.host);
  }

  #options(view: View): uPlot.Options {
    const axis = {
      stroke: this.#tint("--quiet"),
      grid: { stroke: this.#tint("--line"), width: 0.5 },
      ticks: { show: false },
    };
    const now = () => this.#view ?? view;
    const only = (kind: string) => kind === "mousemove" || kind === "mouseleave";
    return {
      width: this.host.clientWidth,
      height: this.height,
      legend: { show: false },
      padding: [8, 20, 0, 0],
      cursor: {
        drag: { x: true, y: false, setScale: false },
        points: { show: false },
        sync: { key: this.sync, scales: ["x", null], setSeries: false, filters: { pub: only, sub: only } },
        bind: {
          dblclick: () => () => {
            this.heard.zoomed(null);
            return null;
          },
        },
      },
      scales: {
        x: { time: false, range: (_, min, max) => now().zoom ?? wide(min, max) },
        y: view.log
          ? { distr: 3, range: (_, min, max) => logRange(min, max) }
          : { range: (_, min, max) => linearRange(min, max) },
      },
      axes: [
        { ...axis, size: 28, space: 70, values: (_, ticks) => ticks.map((value) => now().showX(value)) },
        {
          ...axis,
          size: (_, values) => 14 + 7 * Math.max(4, ...(values ?? []).map((text) => text.length)),
          space: 34,
          values: (_, ticks) => ticks.map((value) => (value == null ? "" : now().showY(value))),
        },
      ],
      series: [{}, ...this.#series(view)],
      hooks: {
        setSelect: [(plot) => this.#selected(plot)],
        setCursor: [(plot) => this.heard.cursor(plot.cursor.idx ?? null)],
        drawClear: [(plot) => this.#mark(plot, now())],
      },
    };
  }

  /** Each line; smoothed, it is faint, and its smoothed form stands in front. */
  #series(view: View): uPlot.Series[] {
    const form = (slot: number, more: uPlot.Series): uPlot.Series => ({
      stroke: this.#tint(colour(slot)),
      dash: dash(slot),
      width: 1.5,
      points: { show: (_, index) => this.#isSparse(index - 1), size: 4 },
      ...more,
    });
    if (view.smoothing <= 0) return view.lines.map(({ slot }) => form(slot, {}));
    return [
      ...view.lines.map(({ slot }) => form(slot, { alpha: 0.3, width: 1, dash: [], points: { show: false } })),
      ...view.lines.map(({ slot }) => form(slot, { width: 2 })),
    ];
  }

  /** Whether the points of a line are so few that each should be seen; a single one has no line at all. */
  #isSparse(index: number): boolean {
    const lines = this.#view?.lines ?? [];
    return (lines[index % lines.length]?.x.length ?? 0) < 60;
  }

  #selected(plot: uPlot): void {
    const { left, width } = plot.select;
    if (width < 4) return;
    const range: [number, number] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.heard.zoomed(range);
  }

  /** Where a run was gone on with (dashed, over the whole height), and where checkpoints were written (at the foot). */
  #mark(plot: uPlot, { marks }: View): void {
    const { left, top, width, height } = plot.bbox;
    const { ctx } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = this.#tint("--quiet");
    ctx.lineWidth = devicePixelRatio;
    for (const { kind, x: at } of marks) {
      const x = plot.valToPos(at, "x", true);
      if (x < left || x > left + width) continue;
      const foot = top + height;
      ctx.beginPath();
      if (kind === "resumed") {
        ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
        ctx.moveTo(x, top);
        ctx.lineTo(x, foot);
        ctx.stroke();
      } else {
        const size = 4 * devicePixelRatio;
        ctx.moveTo(x - size, foot);
        ctx.lineTo(x + size, foot);
        ctx.lineTo(x, foot - 1.6 * size);
        ctx.fill();
      }
    }
    ctx.restore();
  }
}

/** A range that is wider than a point. */
function wide(min: number | null, max: number | null): [number, number] {
  if (min == null || max == null) return [0, 1];
  return min === max ? [min - 0.5, max + 0.5] : [min, max];
}

/** Room above and below; a line that is level stands in the middle. */
function linearRange(min: number | null, max: number | null): uPlot.Range.MinMax {
  if (min == null || max == null) return [0, 1];
  const room = Math.abs(min) * 0.1 || 1;
  return min === max ? [min - room, max + room] : uPlot.rangeNum(min, max, 0.1, true);
}

function logRange(min: number | null, max: number | null): uPlot.Range.MinMax {
  return min == null || max == null || !(min > 0) ? [0.1, 1] : uPlot.rangeLog(min, max, 10, false);
}
