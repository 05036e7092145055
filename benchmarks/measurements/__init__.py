"""What studies measure beyond the evaluations of ``ebt_policy.eval``, one file each."""
