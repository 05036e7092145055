"""A policy on another machine: the server, its protocol and its client."""
