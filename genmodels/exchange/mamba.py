"""Weights of transformers' Mamba and Mamba-2 as those of our transformer, and the reverse.

Here and there, the matching transformers compute the same. In ours, the blocks have no MLP (`mlp
"none"`), the norms are RMSNorm, and all mixers are `mamba` or all are `mamba2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genmodels.nn.ssm import SSMConfig
from genmodels.nn.transformer import TransformerConfig

SHARED = {
    "inputs.weight": "in_proj.weight",
    "inputs.bias": "in_proj.bias",
    "out.weight": "out_proj.weight",
    "out.bias": "out_proj.bias",
    "cores.0.conv": "conv1d.weight",
    "cores.0.conv_bias": "conv1d.bias",
    "cores.0.log_a": "A_log",
    "cores.0.skip": "D",
}
MIXER_NAMES = {
    "mamba": SHARED
    | {
        "cores.0.read.weight": "x_proj.weight",
        "cores.0.dt.weight": "dt_proj.weight",
        "cores.0.dt_bias": "dt_proj.bias",
    },
    "mamba2": SHARED | {"cores.0.dt_bias": "dt_bias", "norm": "norm.weight"},
}
"""For each mixer, its weights here and in MambaMixer or Mamba2Mixer."""
OPTIONAL = ("inputs.bias", "out.bias")
"""Weights that both have or both lack, as the setting `bias` here and `use_bias` there says."""


def mixer_from_transformers(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Convert the state dict of a MambaMixer or Mamba2Mixer to that of our mixer `kind`.

    | here                        | MambaMixer               | Mamba2Mixer              |
    |-----------------------------|--------------------------|--------------------------|
    | inputs.weight, inputs.bias  | in_proj.weight, .bias    | in_proj.weight, .bias    |
    | out.weight, out.bias        | out_proj.weight, .bias   | out_proj.weight, .bias   |
    | cores.0.conv (C, K)         | conv1d.weight (C, 1, K)  | conv1d.weight (C, 1, K)  |
    | cores.0.conv_bias           | conv1d.bias              | conv1d.bias              |
    | cores.0.log_a               | A_log                    | A_log                    |
    | cores.0.skip                | D                        | D                        |
    | cores.0.dt_bias             | dt_proj.bias             | dt_bias                  |
    | cores.0.dt.weight           | dt_proj.weight           |                          |
    | cores.0.read.weight         | x_proj.weight            |                          |
    | norm                        |                          | norm.weight              |

    Nothing is permuted. A convolution without a bias there has one of 0 here.

    Raises:
        ValueError: when a weight is missing, or has no counterpart here.
    """
    rest, target = dict(state), dict[str, Tensor]()
    if "conv1d.weight" in rest:
        rest.setdefault("conv1d.bias", rest["conv1d.weight"].new_zeros(len(rest["conv1d.weight"])))
    for ours, theirs in MIXER_NAMES[kind].items():
        if theirs in rest:
            value = rest.pop(theirs)
            target[ours] = value.squeeze(1) if ours == "cores.0.conv" else value
        elif ours not in OPTIONAL:
            raise ValueError(f"not the weights of a {kind} mixer: {theirs} is missing")
    if rest:
        raise ValueError(f"not the weights of a {kind} mixer: no place for {', '.join(sorted(rest))}")
    return target


def mixer_to_transformers(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Convert the state dict of our mixer `kind` to that of a MambaMixer or Mamba2Mixer: the reverse of
    `mixer_from_transformers`.

    Raises:
        ValueError: when a weight is missing, or has no counterpart there, such as those of a second
            direction.
    """
    names = MIXER_NAMES[kind]
    missing = [name for name in names if name not in state and name not in OPTIONAL]
    more = [name for name in state if name not in names]
    if missing or more:
        what = f"{missing[0]} is missing" if missing else f"{more[0]} has no counterpart there"
        raise ValueError(f"not the weights of a causal {kind} mixer: {what}")
    return {
        theirs: state[ours].unsqueeze(1) if ours == "cores.0.conv" else state[ours]
        for ours, theirs in names.items()
        if ours in state
    }


def from_mamba(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a MambaModel, a Mamba2Model, or either's ForCausalLM, to that of a
    `Transformer`.

    | here                       | transformers, after `backbone.`                 |
    |----------------------------|-------------------------------------------------|
    | blocks.i.KIND_norm.weight  | layers.i.norm.weight                            |
    | blocks.i.KIND.*            | layers.i.mixer.*, see `mixer_from_transformers` |
    | norm.weight                | norm_f.weight                                   |

    KIND is mamba or mamba2. The embedding (embeddings.weight) and the head (lm_head.weight) are left
    out, because a `Transformer` has neither. `config_of` gives the matching config.

    Raises:
        ValueError: when a weight is missing or has no counterpart here.
    """
    source = {name.removeprefix("backbone."): value for name, value in state.items()}
    for name in ("embeddings.weight", "lm_head.weight"):
        source.pop(name, None)
    kind = "mamba" if any(name.endswith("x_proj.weight") for name in source) else "mamba2"
    layers: dict[str, dict[str, Tensor]] = {}
    target: dict[str, Tensor] = {}
    for name, value in source.items():
        layer, _, rest = name.removeprefix("layers.").partition(".")
        if name == "norm_f.weight":
            target["norm.weight"] = value
        elif rest == "norm.weight" and name.startswith("layers."):
            target[f"blocks.{layer}.{kind}_norm.weight"] = value
        elif rest.startswith("mixer.") and name.startswith("layers."):
            layers.setdefault(layer, {})[rest.removeprefix("mixer.")] = value
        else:
            raise ValueError(f"not the weights of a MambaModel or Mamba2Model: no place for {name}")
    if "norm.weight" not in target or not layers:
        raise ValueError("not the weights of a MambaModel or Mamba2Model: norm_f.weight or all layers are missing")
    for layer, mixer in layers.items():
        converted = mixer_from_transformers(mixer, kind)
        target |= {f"blocks.{layer}.{kind}.{name}": value for name, value in converted.items()}
    return target


def to_mamba(state: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Convert the state dict of a causal `Transformer` to that of a MambaModel or Mamba2Model, without
    its embedding: the reverse of `from_mamba`.

    Raises:
        ValueError: when transformers has no counterpart of the config; see `settings_of`.
    """
    settings_of(config)
    kind = config.mixers[0]
    target = {"norm_f.weight": state["norm.weight"]}
    for i in range(config.depth):
        target[f"layers.{i}.norm.weight"] = state[f"blocks.{i}.{kind}_norm.weight"]
        own = f"blocks.{i}.{kind}."
        mixer = {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
        converted = mixer_to_transformers(mixer, kind)
        target |= {f"layers.{i}.mixer.{name}": value for name, value in converted.items()}
    return target


def config_of(settings: Any) -> TransformerConfig:
    """Return the config of the `Transformer` that computes what a model with these settings does.

    Args:
        settings: a MambaConfig or Mamba2Config of transformers.

    Raises:
        ValueError: for settings that have no counterpart here.
    """
    s = settings
    if s.model_type not in MIXER_NAMES:
        raise ValueError(f"a {s.model_type} of transformers is neither a mamba nor a mamba2")
    if s.hidden_act != "silu":
        raise ValueError(f"hidden_act {s.hidden_act!r} of a {s.model_type} is not supported: only 'silu' is")
    common: dict[str, Any] = {"state": s.state_size, "expand": s.expand, "conv": s.conv_kernel}
    if s.model_type == "mamba":
        ssm = SSMConfig(**common, rank=s.time_step_rank)
    else:
        low, high = s.time_step_limit
        if (low, high) != (0.0, float("inf")):
            raise ValueError(f"time_step_limit {low, high} of a mamba2 is not supported: steps are not clamped here")
        ssm = SSMConfig(**common, head=s.head_dim, groups=s.n_groups, chunk=s.chunk_size)
    return TransformerConfig(
        width=s.hidden_size,
        depth=s.num_hidden_layers,
        heads=1,
        mixers=(s.model_type,),
        ssm=ssm,
        mlp="none",
        rotary=False,
        bias=s.use_bias,
        norm_eps=s.layer_norm_epsilon,
    )


def settings_of(config: TransformerConfig) -> dict[str, Any]:
    """Return the settings of the MambaConfig or Mamba2Config that matches `config`: the reverse of
    `config_of`. The vocabulary is left to the caller.

    Raises:
        ValueError: when transformers has no counterpart.
    """
    c, ssm = config, config.ssm
    reasons = {
        f"its mixers are {', '.join(c.mixers)}": len({*c.mixers}) > 1 or c.mixers[0] not in MIXER_NAMES,
        f"its blocks have an MLP ({c.mlp})": c.mlp != "none",
        f"its norm is {c.norm}": c.norm != "rms",
    }
    if absent := [reason for reason, applies in reasons.items() if applies]:
        raise ValueError(f"neither a MambaModel nor a Mamba2Model of transformers: {'; '.join(absent)}")
    kind, inner = c.mixers[0], ssm.expand * c.width
    common = {
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "state_size": ssm.state_size(kind),
        "expand": ssm.expand,
        "conv_kernel": ssm.conv,
        "use_bias": c.bias,
        "layer_norm_epsilon": c.norm_eps,
    }
    if kind == "mamba":
        return common | {"time_step_rank": ssm.step_rank(c.width)}
    sizes = {"head_dim": ssm.head, "num_heads": inner // ssm.head, "n_groups": ssm.groups}
    return common | sizes | {"chunk_size": ssm.chunk}
