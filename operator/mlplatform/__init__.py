"""The operator: one Kubernetes resource from data to trusted production.

Imported by ``mlplatform.main`` (kopf) and by the ``kubectl mlmodel`` plugin.
"""

__version__ = "0.1.0"
