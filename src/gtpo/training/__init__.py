"""Training on TRL: GTPO (a `GRPOTrainer`) and the cold start (an `SFTTrainer`). The only place that knows TRL."""
