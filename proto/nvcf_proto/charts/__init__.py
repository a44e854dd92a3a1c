"""Rules for rendered Helm charts: what a chart may create, what is changed in it, and what is refused.

All of it is pure. The agent applies the rules before it installs a chart; whoever can render a chart can
apply them beforehand.
"""
