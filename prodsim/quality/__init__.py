"""Data quality: audit, repair, split, augment, review."""
