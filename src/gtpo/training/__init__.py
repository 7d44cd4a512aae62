"""Training with TRL: GTPO (a `GRPOTrainer`) and the cold start (an `SFTTrainer`). Only this package depends on TRL."""
