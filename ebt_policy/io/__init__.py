"""Files: search, download, caches, output folders and atomic writes."""
