"""A few policies that serve every weighting of three rewards, from sampled candidates."""

import numpy as np

from jaxalign import palm

rng = np.random.default_rng(0)
quality = rng.normal(size=(40, 16, 3))  # 40 prompts, 16 candidates each, 3 rewards
quality[..., 2] -= quality[..., 0]  # the third reward conflicts with the first
low, high = quality.min((0, 1)), quality.max((0, 1))
rewards = (quality - low) / (high - low)  # in [0, 1]

oracle = palm.ClosedForm(rewards, None, beta=0.05, names=["brevity", "warmth", "detail"])
portfolio = palm.build(oracle, palm.PalmConfig(size=4))
print(f"{len(portfolio.members)} members, the reference policy included")
for member, expected in enumerate(portfolio.members.rewards):
    print(f"  member {member}: expected rewards {np.round(expected, 2)}")
worst = portfolio.certificate.pool.additive_sd
print(
    f"worst gap over all weights: {worst.value:.2f} standard deviations, at {worst.weight.round(2)}"
)

users = rng.dirichlet(np.ones(3), size=1000)  # weights of 1,000 users
value, member = portfolio.route(users)
print("users per member:", np.bincount(np.asarray(member), minlength=len(portfolio.members)))
