"""The pipeline of an MLModel on this machine, without a cluster.

Called by `mlplatform.cli.run` and `mlplatform.run`. What decides is the operator's own `plan`; what is here does
the cluster's part: it keeps the objects (`state`), starts a container as a group of processes (`process`), and
restarts and ends them as the Job controller and the Training Operator do (`controllers`).
"""
