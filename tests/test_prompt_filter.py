"""The prompt filter: lists of words, classifiers, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from test_text_condition import model_of

from genmodels.cli import main
from genmodels.prompt_filter import check_prompts, classifier, word_list


def test_a_list_refuses_whole_words_and_phrases(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# people\nNapoleon\n\nold  king\nÉmile\nc++\n")
    reason = word_list(path)
    assert reason("a painting of NAPOLEON, smiling") == "lists 'napoleon'"
    assert reason("an old king") == reason("an Old   King") == "lists 'old king'"
    assert reason("E\u0301mile") == "lists 'émile'"
    assert reason("a c++ book") == "lists 'c++'"
    for allowed in ("napoleonic wars", "an old man and a king", "people", "cold kings", "a c+ book"):
        assert reason(allowed) == ""


def test_the_message_names_the_prompt_and_the_filter(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("king\n")
    check_prompts(["a man"], path)
    with pytest.raises(ValueError, match=r"^the prompt, 'a king', is refused: .*words.txt lists 'king'$"):
        check_prompts(["a king"], path)
    with pytest.raises(ValueError, match=r"^prompt 2, 'a king', is refused"):
        check_prompts(["a man", "a king"], path)


def test_filters_that_cannot_work_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="lists no words: write a word or phrase on each line"):
        check_prompts(["a man"], path)
    with pytest.raises(ValueError, match="absent: no such file or folder"):
        check_prompts(["a man"], tmp_path / "absent")
    with pytest.raises(ValueError, match="checks prompts: give --prompt or --prompts"):
        check_prompts([], path)
    with pytest.raises(ValueError, match="not a sequence classifier of transformers"):
        check_prompts(["a man"], tmp_path)


def bert(folder: Path) -> Path:
    """Write a tiny classifier that refuses what contains the word "king"."""
    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4, "man": 5, "king": 6}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    names = {0: "safe", 1: "royal"}
    config = transformers.DistilBertConfig(
        vocab_size=7,
        dim=8,
        n_layers=1,
        n_heads=2,
        hidden_dim=8,
        id2label=names,
        label2id={"safe": 0, "royal": 1},
        **sizes,
    )
    torch.manual_seed(0)
    model = transformers.DistilBertForSequenceClassification(config).eval()
    ids = [torch.tensor([[4, word]]) for word in (5, 6)]
    with torch.no_grad():
        hidden = [model.pre_classifier(model.distilbert(x).last_hidden_state[:, 0]).relu()[0] for x in ids]
        direction = hidden[1] - hidden[0]
        middle = (hidden[0] + hidden[1]) / 2
        model.classifier.weight.copy_(torch.stack([-direction, direction]) * 1e3)
        model.classifier.bias.copy_(torch.stack([direction @ middle, -direction @ middle]) * 1e3)
    model.save_pretrained(folder)
    return folder


def test_a_classifier_allows_class_0(tmp_path: Path) -> None:
    reason = classifier(bert(tmp_path / "bert"))
    assert reason("a man") == "" and reason("a king").startswith("classifies it as 'royal' (")
    with pytest.raises(ValueError, match=r"^the prompt, 'a king', is refused: .*bert classifies it as 'royal'"):
        check_prompts(["a king"], tmp_path / "bert")


def test_sample_refuses_a_prompt_before_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model_of("autoregressive").save_pretrained("model")
    Path("words.txt").write_text("woman\n")
    asked = ["sample", "model", "--n", "1", "--prompt-filter", "words.txt"]
    assert main([*asked, "--prompt", "a woman", "--out", "no.png"]) == 1
    assert "error: the prompt, 'a woman', is refused: words.txt lists 'woman'" in capsys.readouterr().err
    assert not Path("no.png").exists()
    assert main([*asked, "--prompt", "a man", "--out", "yes.png"]) == 0
    assert Path("yes.png").exists()
    Path("prompts.txt").write_text("a man\na woman\n")
    assert main([*asked, "--prompts", "prompts.txt", "--out", "no.png"]) == 1
    assert "prompt 2, 'a woman', is refused" in capsys.readouterr().err
    assert main([*asked, "--out", "no.png"]) == 1
    assert "--prompt-filter words.txt checks prompts: give --prompt or --prompts" in capsys.readouterr().err
