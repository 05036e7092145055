"""Execution of a policy on a robot: the control loop, its safety layer, drivers, recording."""
