"""Image search: Copydays, and revisited Oxford and Paris."""
