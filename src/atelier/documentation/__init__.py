"""What the service says of itself: the OpenAPI document, the docs page, and a page for every problem.

The document is the same, and whole, in every role; only this package and the composition root know both sides.
"""
