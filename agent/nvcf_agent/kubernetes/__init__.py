"""The agent's Kubernetes backend: pods and Helm releases of one cluster."""
