"""Running a policy on a robot: the control loop, its safety layer, drivers, recording."""
