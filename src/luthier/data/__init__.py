"""Rows -> examples -> segments -> packed batches."""
