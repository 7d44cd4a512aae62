"""Other training frameworks that run gtpo's rollouts and credit assignment. Each needs its own extra."""
