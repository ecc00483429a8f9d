"""The folder of an adapter named as a model, against peft's own merge."""

import json

import numpy as np
import peft
import pytest
import tiny_lms
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_bert import SIZES, WORDS

from jaxalign.errors import InputError
from jaxalign.models import classifier, encode, families, load_encoder, load_language_model
from jaxalign.models.resolve import resolve
from jaxalign.models.weights.adapter import CONFIG, WEIGHTS
from jaxalign.rewards.reward_model import load_reward_model

# Of the library peft, which asks its base for a name that is going away.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]
TOKENS = np.random.default_rng(0).integers(4, 266, (2, 9)).astype(np.int32)
CASES = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "stabilised": ("qwen3", {"target_modules": ["v_proj"], "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 5},
        },
    ),
    "head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tables": (
        "llama",
        {"target_modules": ["up_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "untied head": ("qwen2-tied", {"target_modules": ["k_proj"], "modules_to_save": ["lm_head"]}),
    "untied table": (
        "llama-tied",
        {"target_modules": ["k_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "norms": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}


def write(folder, name, rows=None, save_embeddings="auto", **settings):
    """A base model and a random adapter of peft beside it; returns peft's model, merged."""
    base = tiny_lms.write(folder / "base", name)
    model = tiny_lms.hf_model(name)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    model.config.name_or_path = str(base)
    config = peft.LoraConfig(r=4, lora_alpha=9, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter", save_embedding_layers=save_embeddings)
    return model.merge_and_unload()


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits.numpy()


def ours(folder):
    model = load_language_model(str(folder))
    states = families.forward(model.config, model.params, TOKENS)[0]
    return model, np.asarray(families.logits(model.params, states))


def relative(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_its_base_with_it(case, tmp_path, capsys):
    name, settings = CASES[case]
    expected = theirs(write(tmp_path, name, **settings))
    model, found = ours(tmp_path / "adapter")
    assert relative(found, expected) < 1e-4
    assert f"{tmp_path}/adapter is merged into its base" in capsys.readouterr().err
    plain = load_language_model(str(tmp_path / "base"))
    assert model.sha256 != plain.sha256 == resolve(str(tmp_path / "base")).sha256


def test_embeddings_that_were_enlarged_come_with_their_tokens(tmp_path):
    merged = write(tmp_path, "llama", rows=280, target_modules=["q_proj"], save_embeddings=True)
    model, found = ours(tmp_path / "adapter")
    assert model.config.vocab_size == model.hf_config["vocab_size"] == 280
    assert relative(found, theirs(merged)) < 1e-4


def test_the_names_that_other_trainers_write(tmp_path):
    merged = write(
        tmp_path, "llama", target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"]
    )
    place = tmp_path / "adapter" / WEIGHTS
    renamed = {}
    for name, value in load_file(place).items():
        spelled = name.replace(".lora_A.weight", ".lora_A.default.weight")
        spelled = spelled.replace(".lora_B.weight", ".lora_B.default.weight")
        spelled = spelled.replace("lm_head.weight", "lm_head.modules_to_save.default.weight")
        renamed[spelled] = value
    assert sum(".default." in name for name in renamed) == len(renamed)
    renamed["base_model.model.lm_head.original_module.weight"] = torch.zeros(3)
    save_file(renamed, place)
    assert relative(ours(tmp_path / "adapter")[1], theirs(merged)) < 1e-4


@pytest.mark.parametrize("stated", ["../base", "base"])
def test_the_base_lies_beside_the_adapter_or_below_the_working_directory(
    stated, tmp_path, monkeypatch
):
    merged = write(tmp_path, "llama", target_modules=["q_proj"])
    change(tmp_path / "adapter", base_model_name_or_path=stated)
    monkeypatch.chdir(tmp_path if stated == "base" else "/")
    assert relative(ours(tmp_path / "adapter")[1], theirs(merged)) < 1e-4
    digest = resolve(str(tmp_path / "adapter")).sha256
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    assert resolve(str(tmp_path / "adapter")).sha256 == digest
    change(tmp_path / "adapter", lora_alpha=18)
    assert resolve(str(tmp_path / "adapter")).sha256 != digest


def test_an_adapter_on_an_adapter(tmp_path):
    merged = write(tmp_path, "llama", target_modules=["q_proj"])
    write(tmp_path / "second", "llama", target_modules=["up_proj"])
    change(tmp_path / "second" / "adapter", base_model_name_or_path=str(tmp_path / "adapter"))
    second = peft.PeftModel.from_pretrained(merged, tmp_path / "second" / "adapter")
    found = ours(tmp_path / "second" / "adapter")[1]
    assert relative(found, theirs(second.eval())) < 1e-4


def change(folder, **fields):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | fields))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None.*write it there"),
        ({"base_model_name_or_path": "/gone/model"}, "'/gone/model', cannot be used.*no such file"),
        ({"base_model_name_or_path": "."}, "leads back to the adapter itself"),
        ({"use_dora": True}, r"use_dora is True.*merge_and_unload"),
        ({"task_type": "SEQ_CLS"}, "or a reward model.*reward score"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "'embed_tokens'.*are not read"),
    ],
)
def test_what_cannot_be_merged_is_refused(fields, match, tmp_path):
    write(tmp_path, "llama", target_modules=["q_proj"])
    change(tmp_path / "adapter", **fields)
    with pytest.raises(InputError, match=match) as caught:
        load_language_model(str(tmp_path / "adapter"))
    assert "\n" not in str(caught.value)


def bert_base(folder):
    sizes = SIZES | {"num_hidden_layers": 2}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_reward_model_that_peft_trained(name, tmp_path):
    """As TRL's RewardTrainer writes it: SEQ_CLS, the head beside the low-rank updates."""
    torch.manual_seed(2)
    base, targets = tmp_path / "base", {"gpt2": ["c_attn"], "bert": ["query", "output.dense"]}
    if name == "bert":
        bert_base(base)
    else:
        tiny_lms.write(base, name)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, attn_implementation="eager"
    )
    # The pooler of BERT belongs to its head; it is in the base that was written.
    settings = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=5,
        target_modules=targets.get(name, ["q_proj", "down_proj"]),
        fan_in_fan_out=name == "gpt2",
    )
    model = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "adapter")
        tokens = torch.tensor(TOKENS % 40 + 2).long()
        expected = model(tokens, attention_mask=torch.ones_like(tokens)).logits.numpy()
    found = load_reward_model(tmp_path / "adapter")
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    lengths = np.full(2, TOKENS.shape[1], np.int32)
    logits = classifier.forward(found.config, found.params, TOKENS % 40 + 2, lengths)
    assert relative(np.asarray(logits), expected) < 1e-4
    assert found.sha256 == resolve(str(tmp_path / "adapter")).sha256
    if name != "bert":
        encoder = load_encoder(str(tmp_path / "adapter"))
        assert encoder.sha256 == found.sha256
        assert encode(encoder, ["the end"], progress=False).shape == (1, 32)


def test_an_encoder_with_an_adapter(tmp_path):
    bert_base(tmp_path / "base")
    plain = load_encoder(str(tmp_path / "base"))
    model = transformers.BertModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    settings = peft.LoraConfig(
        task_type="FEATURE_EXTRACTION", r=3, target_modules=["key", "output.dense"]
    )
    model = peft.get_peft_model(model, settings).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "lora_" in part:
                parameter.copy_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "adapter")
        tokens = torch.tensor(plain.tokenizer.encode("a b red").ids)[None]
        expected = model(tokens).last_hidden_state.mean(1).numpy()
    encoder = load_encoder(str(tmp_path / "adapter"))
    assert encoder.identity != plain.identity
    found = encode(encoder, ["a b red"], pooling="mean", normalise=False, progress=False)
    assert relative(found, expected) < 1e-4
    assert relative(encode(plain, ["a b red"], "mean", False, progress=False), expected) > 1e-2


def test_a_tokenizer_with_tokens_that_no_embedding_has(tmp_path):
    write(tmp_path, "llama", target_modules=["q_proj"])
    tokenizer = tiny_lms.tokenizer()
    tokenizer.add_tokens([f"<new {number}>" for number in range(9)])
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"275 entries, the model 272.*move the tokenizer out of"):
        load_language_model(str(tmp_path / "adapter"))


def test_a_model_with_tokenizer_model_alone_says_what_it_needs(tmp_path):
    folder = tiny_lms.write(tmp_path / "model", "llama")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(InputError, match=r"put tokenizer\.json there, or install the package sent"):
        load_language_model(str(folder))
