"""A long run of keyed calls that shows what grows, and whether it shrinks again."""
