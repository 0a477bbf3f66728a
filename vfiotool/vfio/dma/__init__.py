"""Memory that devices reach: where it comes from, where they reach it, and many pieces at once."""
