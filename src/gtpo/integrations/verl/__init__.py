"""GTPO on verl (0.9.x): `pip install 'gtpo[verl]'`, then three options of `verl.trainer.main_ppo`.

    trainer.v1.trainer_mode=gtpo_sync                             # turn rewards and shaping: `trainer`
    algorithm.adv_estimator=gtpo                                  # returns and advantages: `estimator`
    actor_rollout_ref.rollout.agent.default_agent_loop=gtpo       # rollouts with tools: `agent_loop`

verl finds `plugin`, and with it the three names, through its entry point group `verl.plugins`. `docs/verl.md` describes
what verl passes, what is overridden and why.
"""
