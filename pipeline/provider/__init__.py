"""The embedding service seen from our side: one client for every service, exact tokens, dated prices, its limits."""
