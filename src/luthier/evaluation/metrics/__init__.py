"""How answers are graded, one file a library."""
