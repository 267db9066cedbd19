"""How catalogues come in and go out: import, demo catalogue, generator, export."""
