"""Answers from memory that are never staler than they say: what replicas answered, while their feeds let it stand."""
