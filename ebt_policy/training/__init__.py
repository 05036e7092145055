"""One trainer for every model: resumable, on any number of processes and any device."""
