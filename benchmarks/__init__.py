"""Commands that measure the results in README and docs. The tests do not run them."""
