"""Helm functions: a chart is fetched, rendered by helm, checked, and installed object by object.

One custom resource, a MiniService, stands for each instance; see miniservice.py for its phases.
"""
