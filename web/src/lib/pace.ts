/** Work that may be asked for often and is done seldom: at most once in `gap` milliseconds, and not in a hidden tab. */
export interface Paced {
  ask(): void;
  stop(): void;
}

export function paced(work: () => void, gap = 250): Paced {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let last = -Infinity;
  let wanted = false;

  function run(): void {
    timer = undefined;
    if (!wanted || document.hidden) return;
    wanted = false;
    last = performance.now();
    work();
  }
  const seen = () => {
    if (!document.hidden && wanted && timer === undefined) run();
  };
  document.addEventListener("visibilitychange", seen);
  return {
    ask() {
      wanted = true;
      timer ??= setTimeout(run, Math.max(0, last + gap - performance.now()));
    },
    stop() {
      clearTimeout(timer);
      wanted = false;
      document.removeEventListener("visibilitychange", seen);
    },
  };
}
