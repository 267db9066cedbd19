"""Those who use a shop: each a Locust user with a session of its own."""
