"""Row layouts people use, one file each: a row becomes an Example."""
