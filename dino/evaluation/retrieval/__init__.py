"""Images that are searched: Copydays, and revisited Oxford and Paris."""
