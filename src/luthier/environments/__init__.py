"""Where prompts come from, and what answers to an answer. One file each."""
