"""Files: where they are found, downloaded, cached, and written whole or not at all."""
