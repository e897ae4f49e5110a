export const en = {
  choose: "Choose",
  runs: "Runs",
  models: "Models",
  step: "step {n}",
  notHere: "to be fetched",
  other: "Another one",
  otherName: "Name on the hub, or folder below the model folders",
  checkpoint: "Checkpoint",
  result: "Result of the run (last step)",
  damaged: "damaged",
};

export const zh: typeof en = {
  choose: "请选择",
  runs: "训练记录",
  models: "模型",
  step: "第 {n} 步",
  notHere: "需要下载",
  other: "其他",
  otherName: "Hub 上的名称，或模型目录下的文件夹",
  checkpoint: "检查点",
  result: "训练结果（最后一步）",
  damaged: "已损坏",
};
