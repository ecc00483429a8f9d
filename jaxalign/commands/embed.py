"""`jaxalign embed`."""

import argparse
from pathlib import Path

from jaxalign.commands.parser import Commands, add_out, command
from jaxalign.data.tables import read_texts
from jaxalign.errors import InputError
from jaxalign.progress import counted


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "embed", _embed, "encode the texts of choices, or lines of a file")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--pooling", choices=("auto", "mean", "cls", "last"), default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--data",
        help="preference file, with rows of `chosen`, `rejected` and perhaps `prompt`; or a "
        "folder, or a data set of the Hub",
    )
    parser.add_argument(
        "--texts", type=Path, help="a text a line, or rows with `text`, `completion` or `answer`"
    )
    add_out(parser, "file", ".npz to write", endings=(".npz",), fields=(("ids", "features"),))


def _embed(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.data import Features, load_source, save_features
    from jaxalign.models.embed import encode_with_stats, load_encoder

    if (arguments.data is None) == (arguments.texts is None):
        raise InputError("embed takes either --data or --texts")
    if arguments.texts is not None:
        texts = list(dict.fromkeys(read_texts(arguments.texts)))
        keys = texts
    else:
        choices = load_source(arguments.data, ratings=True).choices
        keys, texts = list(choices.items), list(choices.texts)
        if len(set(keys)) < len(keys):
            raise InputError(
                f"{arguments.data}: the same answer stands under two prompts, so ids are not "
                "unique: let `jaxalign mrm train` encode it (it keeps what it encodes)"
            )
    pooling = None if arguments.pooling == "auto" else arguments.pooling
    encoder = load_encoder(arguments.model, arguments.dtype)
    values, stats = encode_with_stats(encoder, texts, pooling=pooling)
    save_features(arguments.out, Features(tuple(keys), values))
    print(f"{counted(stats.encoded, 'text')} encoded, {stats.cached} known; wrote {arguments.out}")
