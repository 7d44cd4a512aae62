"""Training with TRL: GTPO (a `GRPOTrainer`) and the cold start (an `SFTTrainer`). Only `commands` also uses TRL."""
