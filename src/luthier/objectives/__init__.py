"""What better means: pure functions from scores and a batch to a loss. One file each."""
