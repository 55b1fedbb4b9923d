"""The command that makes preference pairs.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional

from genmodels.cli.arguments import (
    NO_CONDITION,
    ConditionFlags,
    check_empty,
    chosen_options,
    load,
    open_model,
    read_lines,
)
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.alignment.prefer import Request
    from genmodels.alignment.rewards import Reward


def prefer(
    run: Positional[str],
    reward: str | None = None,
    n: int = 1000,
    seed: int = 0,
    out: Path | None = None,
    choose: bool = False,
    against: str | None = None,
    condition: OmitArgPrefixes[ConditionFlags] = NO_CONDITION,
    prompts: Path | None = None,
    options: tuple[str, ...] = (),
    batch_size: int = 64,
    data: str | None = None,
    root: Path | None = None,
    extractor: str = "faces",
) -> None:
    """Make preference pairs from samples of a model, for genmodels train dpo.

    Both samples of a pair have the same condition and different noise. A reward chooses one of
    them, or a person does.

    Args:
        run: run or model folder, or toyfaces/NAME.
        reward: attribute=NAME (a probe of real images finds the attribute; attribute=NAME=no for its
            absence), clip=RUN (the CLIP-score of an image and its prompt), or realism (how close the
            image is to real ones).
        n: number of pairs.
        seed: seed of the samples.
        out: new or empty folder for the pairs.
        choose: write a page on which a person chooses, instead of a reward. It saves choices.csv,
            which belongs into the folder of the page.
        against: run that RUN was trained from. No pairs are made: the rewards of n samples of both
            and the KL divergence between them are printed.
        condition: condition of the samples.
        prompts: text file with a prompt on each line, which pairs are sampled from in turn.
        options: sampling options of the family as NAME=VALUE. --NAME VALUE is short for it.
        batch_size: number of images computed at a time.
        data: real images for attribute and realism: a data set by name or a packed directory. By
            default, what the run was trained on.
        root: where the files of the data set are. By default, that of the run.
        extractor: extractor whose features attribute and realism look at, as for evaluate. It should
            not be one that judges the result.
    """
    _check(reward, n, out, choose, against, batch_size)
    if prompts is not None and condition.prompt is not None:
        raise UsageError("--prompt and --prompts both say what the images should show: give one of them")

    from genmodels.alignment.prefer import MOST_CHOSEN, Request, make_pairs
    from genmodels.alignment.rewards import check_reward

    if choose and n > MOST_CHOSEN:
        raise UsageError(f"--choose makes a page of at most {MOST_CHOSEN:,} pairs: lower --n {n}")
    if reward is not None:
        try:
            check_reward(reward)
        except ValueError as error:
            raise UsageError(str(error)) from None
    model = open_model(run, "sample")
    if out is not None:
        check_empty(out, "choose another --out")
    given = condition.as_dict()
    prompt = given.pop("prompt", None)
    texts: list[Any] = [prompt] if prompt else [] if prompts is None else read_lines(prompts)
    request = Request(n, seed, given, texts, chosen_options(model, options), batch_size)
    for text in texts or [None]:
        replace(condition, prompt=text).of(model, 1)  # refuses what the model was not trained with
    how = None if reward is None else _reward(reward, run, model, data, root, extractor, texts)
    if against is not None:
        assert how is not None
        _compare(run, model, against, request, how)
        return
    assert out is not None
    record = make_pairs(model, request, how, out).record
    left = f", {record.left_out:,} left out (identical or equal)" if record.left_out else ""
    print(f"{record.count:,} pairs{left} in {out}")
    if record.rewards:
        print(f"mean reward {record.rewards[0]:.4g} chosen, {record.rewards[1]:.4g} rejected: {record.reward}")
    else:
        print(f"open {out / 'index.html'} in a browser, and save choices.csv into {out}")
    print(f"next: genmodels train dpo {run} --pairs {out}")


def _check(reward: str | None, n: int, out: Path | None, choose: bool, against: str | None, batch_size: int) -> None:
    """Refuse flags that do not go together, before any work."""
    if min(n, batch_size) < 1:
        raise UsageError(f"--n and --batch-size must be at least 1, got {n} and {batch_size}")
    if choose == (reward is not None):
        raise UsageError("give --reward, or --choose for a page on which a person chooses")
    if (out is None) == (against is None):
        raise UsageError("give --out, the folder for the pairs, or --against, a run to compare with")
    if choose and against is not None:
        raise UsageError("--against compares rewards: give --reward instead of --choose")


def _reward(
    spec: str, run: str, model: Any, data: str | None, root: Path | None, extractor: str, texts: list[str]
) -> Reward:
    """Return the reward of --reward, with the real images of --data or of the run."""
    from genmodels.alignment.rewards import load_reward
    from genmodels.cli.real_images import EvaluationFlags, real_images

    size = model.config.size

    def real() -> Any:
        return real_images([run], EvaluationFlags(data=data, root=root, size=size)).of_size(size)

    made = load_reward(spec, real, extractor, model.device)
    if made.reads_prompts and not texts:
        raise UsageError(f"--reward {spec} compares images with their prompts: give --prompt or --prompts")
    return made


def _compare(run: str, model: Any, against: str, request: Request, reward: Reward) -> None:
    """Print how far `model` is from the run that it was trained from."""
    from genmodels.alignment.prefer import distance

    result = distance(model, load(against), request, reward)
    print(f"reward: {reward.rule}, {request.n:,} samples of each")
    for name, mean, error, positive in (
        (run, result.reward, result.reward_error, result.positive),
        (against, result.before, result.before_error, result.positive_before),
    ):
        share = f", above 0 for {positive:.1%}" if reward.decides else ""
        print(f"  {name}: {mean:.4f} +- {error:.4f}{share}")
    if result.kl is None:
        print("KL divergence: not known, because the models have no probabilities")
    else:
        print(f"KL divergence of {run} from {against}: {result.kl:.3f} +- {result.kl_error:.3f} nats per image")
