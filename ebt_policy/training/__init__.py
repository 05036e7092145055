"""One trainer for every policy: resumable, on any number of processes and any device."""
