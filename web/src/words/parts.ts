export const en = {
  working: "working",
};

export const zh: typeof en = {
  working: "进行中",
};
