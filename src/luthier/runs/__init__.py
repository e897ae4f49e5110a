"""Run directories: the truth about training, as files. Never imports torch."""
