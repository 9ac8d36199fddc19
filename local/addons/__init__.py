"""Stand-ins for other people's controllers: Training Operator, KServe, Istio and a cluster DNS.

Deployed by the local cluster where the real ones cannot be installed. They are
test doubles: they reconcile the same objects on real pods, know nothing of this
project's operator, and the operator knows nothing of them (see README.md).
"""
