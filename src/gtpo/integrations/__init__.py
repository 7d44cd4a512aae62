"""Other training frameworks that run our rollouts and credit. Each needs its own extra."""
