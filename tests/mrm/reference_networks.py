"""VPL in NumPy, GPO in torch's own layers, and P-TTT's updates one by one in torch, in float64."""

import functools

import jax
import numpy as np
import torch

torch.set_num_threads(1)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def dense(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0.0))


def vpl_posterior(p, items, chosen, rejected, weight):
    """Section 4 and the authors' encoder: pairs one by one, then each attends to all of them."""
    kept = [i for i in range(len(chosen)) if weight[i] > 0]
    encoded = []
    for i in kept:
        first = dense(p["pair_chosen"], items[chosen[i]])
        first = first + items[rejected[i]] @ np.asarray(p["pair_rejected"]["kernel"])
        encoded.append(dense(p["pair_out"], leaky(dense(p["pair_hidden"], leaky(first)))))
    if not kept:
        size = p["mean"]["bias"].shape[0]
        return np.zeros(size), np.zeros(size)
    pooled = 0.0
    for i, x in zip(kept, encoded, strict=True):
        scores = [dense(p["query"], x) @ dense(p["key"], y) / np.sqrt(len(x)) for y in encoded]
        odds = np.exp(scores) * np.array([weight[j] for j in kept])
        values = np.stack([dense(p["value"], y) for y in encoded])
        pooled = pooled + weight[i] * (odds / odds.sum()) @ values
    total = sum(weight)
    pooled = pooled / total * np.log(1 + total)
    return dense(p["mean"], pooled), dense(p["log_var"], pooled)


def vpl_reward(p, item, z):
    x = dense(p["reward_item"], item) + z @ np.asarray(p["reward_latent"]["kernel"])
    return dense(p["reward_out"], leaky(dense(p["reward_hidden"], leaky(x))))[0]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


class TorchGPO(torch.nn.Module):
    """TNP-D as the authors build it: torch's own encoder layers, one mask for all."""

    def __init__(self, params, config):
        super().__init__()
        self.p = params
        layer = functools.partial(
            torch.nn.TransformerEncoderLayer,
            config.width,
            config.heads,
            config.feed_forward,
            dropout=0.0,
            batch_first=True,
            dtype=torch.float64,
        )
        self.layers = [layer() for _ in range(config.layers)]
        for index, torch_layer in enumerate(self.layers):
            self.fill(torch_layer, params[f"layers_{index}"], config)

    @staticmethod
    def fill(layer, p, config):
        def tensor(x):
            return torch.tensor(np.asarray(x))

        d = config.width
        names = ("query", "key", "value")
        weight = torch.cat([tensor(p[n]["kernel"]).reshape(d, d).T for n in names])
        state = {
            "self_attn.in_proj_weight": weight,
            "self_attn.in_proj_bias": torch.cat([tensor(p[n]["bias"]).reshape(d) for n in names]),
            "self_attn.out_proj.weight": tensor(p["out"]["kernel"]).reshape(d, d).T,
            "self_attn.out_proj.bias": tensor(p["out"]["bias"]),
            "linear1.weight": tensor(p["up"]["kernel"]).T,
            "linear1.bias": tensor(p["up"]["bias"]),
            "linear2.weight": tensor(p["down"]["kernel"]).T,
            "linear2.bias": tensor(p["down"]["bias"]),
            "norm1.weight": tensor(p["norm_attention"]["scale"]),
            "norm1.bias": tensor(p["norm_attention"]["bias"]),
            "norm2.weight": tensor(p["norm_feed_forward"]["scale"]),
            "norm2.bias": tensor(p["norm_feed_forward"]["bias"]),
        }
        layer.load_state_dict(state)

    def forward(self, items, support, query):
        """Logits of one user; context without padding, choices of weight 1/2 as log-odds."""
        p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), self.p)
        first = torch.cat([p["first"]["kernel"], p["second"]["kernel"], p["choice"][None]])

        def embed(chosen, rejected, choice):
            points = torch.cat([items[chosen], items[rejected], choice[:, None]], 1)
            hidden = torch.relu(points @ first + p["first"]["bias"])
            return hidden @ p["embed_out"]["kernel"] + p["embed_out"]["bias"]

        chosen, rejected, weight = (torch.tensor(np.asarray(a)) for a in support[:3])
        real = weight > 0
        chosen, rejected, weight = chosen[real].long(), rejected[real].long(), weight[real]
        wanted = [torch.tensor(np.asarray(a)).long() for a in query[:2]]
        context = embed(chosen, rejected, torch.ones_like(weight))
        targets = embed(*wanted, torch.zeros(len(wanted[0]), dtype=torch.float64))
        x = torch.cat([p["start"][None], context, targets])[None]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=torch.float64)
        mask[:, 0] = 0.0
        mask[:, 1 : 1 + len(weight)] = torch.log(weight)[None, :]
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        x = x[0, 1 + len(weight) :]
        x = torch.relu(x @ p["head_hidden"]["kernel"] + p["head_hidden"]["bias"])
        return (x @ p["head_out"]["kernel"] + p["head_out"]["bias"])[:, 0].detach().numpy()


def pttt_logits(p, items, support, query, eta):
    """The update as the paper states it: one outer product after another, in torch."""

    def read(item):
        above = item @ p["up"] + p["up_bias"]
        return torch.nn.functional.gelu(above, approximate="tanh") / len(p["up_bias"]) ** 0.5

    def reward(item, fast):
        return item @ p["skip"] + p["head"] @ (fast @ read(item))

    chosen, rejected, weight = (np.asarray(array) for array in support[:3])
    fast = p["down"]
    rate = eta / (1 + torch.nn.functional.softplus(p["saturation"]) * weight.sum())
    for one, two, count in zip(chosen, rejected, weight, strict=True):
        fast = fast + rate * count * torch.outer(p["value"], read(items[one]) - read(items[two]))
    pairs = zip(np.asarray(query.chosen), np.asarray(query.rejected), strict=True)
    return torch.stack([reward(items[i], fast) - reward(items[j], fast) for i, j in pairs])
