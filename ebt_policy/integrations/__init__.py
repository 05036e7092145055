"""Energy policies within other libraries."""
