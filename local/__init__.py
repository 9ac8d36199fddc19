"""A real Kubernetes cluster on one bare Debian 12 machine.

Called as `python3 -m local <verb>`, by `make up`, `make down`, `make demo` and by the
end-to-end tests. It imports the standard library only, because it runs before anything
is installed.
"""
