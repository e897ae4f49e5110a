"""What tunings put into models. Needs torch, so it is imported when a tuning is applied, not when settings are read."""
