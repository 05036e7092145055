"""The trainer of all models, which can resume and runs on any number of processes and devices."""
