"""What grades an answer. One file each."""
